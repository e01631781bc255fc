"""Hydra job that trains; a launcher may run it in a process that has imported nothing yet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mae_ast.trainer.fairseq_patches.light_imports import deferring_metrics

with deferring_metrics():  # before anything else imports fairseq
    import fairseq_cli.hydra_train

from fairseq import checkpoint_utils
from fairseq.logging import progress_bar
from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict, read_write

from mae_ast.plugin import register
from mae_ast.trainer import console_filter, stop_request
from mae_ast.trainer.fairseq_patches import early_stopping, logged_values
from mae_ast.trainer.presets import share_config_store

_train = fairseq_cli.hydra_train._hydra_main


def install() -> None:
    """Register the plug-in, and make :func:`train` the job of ``fairseq-hydra-train``."""
    register()
    share_config_store()
    fairseq_cli.hydra_train._hydra_main = train


def train(cfg: Any, **kwargs: Any) -> float:
    """Train as ``fairseq-hydra-train`` does, with signals handled and fairseq patched.

    Launchers such as submitit pickle this function by name, so their process imports this module.
    """
    stop_request.listen()
    register()
    _reset_state()
    _quiet_console()
    result: float = _train(cfg, **kwargs)
    return result


@contextmanager
def leave_signals_to_jobs(arguments: Sequence[str]) -> Iterator[None]:
    """Restore the default signal handling if hydra's launcher submits jobs and waits for them.

    Args:
        arguments: arguments of the command line.

    Raises:
        SystemExit: on Ctrl-C, with a one-line message.
    """
    launchers = [each for each in arguments if each.startswith("hydra/launcher=")]
    if launchers and launchers[-1] != "hydra/launcher=basic":
        stop_request.stop_listening()
    try:
        yield
    except KeyboardInterrupt:
        raise SystemExit(
            "mae-ast: interrupted; jobs that were submitted to a scheduler keep running"
        ) from None


def _quiet_console() -> None:
    """Filter the console now and after fairseq has configured logging again."""
    settings: Any = HydraConfig.instance().cfg
    if not settings.hydra.verbose:
        with read_write(settings.hydra), open_dict(settings.hydra):
            console_filter.quiet_job(settings.hydra.job_logging)
        console_filter.quiet_handlers()


def _reset_state() -> None:
    """Reset fairseq's state of a previous job of a sweep: best value, early stopping, logs."""
    checkpoint_utils.save_checkpoint.__dict__.pop("best", None)
    early_stopping.reset()
    for writer in progress_bar._tensorboard_writers.values():
        writer.close()
    progress_bar._tensorboard_writers.clear()
    logged_values.end()
