"""A training as hydra's launchers start it, maybe in a process that has imported nothing yet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import fairseq_cli.hydra_train
from fairseq import checkpoint_utils
from fairseq.logging import progress_bar
from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict, read_write

from mae_ast.plugin import register
from mae_ast.trainer import console_filter, stop_request
from mae_ast.trainer.fairseq_patches import early_stopping

_train = fairseq_cli.hydra_train._hydra_main


def train(cfg: Any, **kwargs: Any) -> float:
    """Train as ``fairseq-hydra-train`` does, with signals handled and fairseq patched.

    A launcher such as submitit's pickles this function by its name, so that its process imports
    this module.
    """
    stop_request.listen()
    register()
    _forget_last_job()
    _quiet_console()
    result: float = _train(cfg, **kwargs)
    return result


@contextmanager
def waiting(arguments: Sequence[str]) -> Iterator[None]:
    """Leave signals to the jobs if hydra's launcher only submits them and waits.

    Args:
        arguments: of the command line.

    Raises:
        SystemExit: on Ctrl-C, with one line.
    """
    launchers = [each for each in arguments if each.startswith("hydra/launcher=")]
    if launchers and launchers[-1] != "hydra/launcher=basic":
        stop_request.stop_listening()
    try:
        yield
    except KeyboardInterrupt:
        raise SystemExit(
            "mae-ast: interrupted; jobs that a scheduler has accepted continue"
        ) from None


def _quiet_console() -> None:
    """Filter what the console shows, from now on and when fairseq configures logging again."""
    settings: Any = HydraConfig.instance().cfg
    if not settings.hydra.verbose:
        with read_write(settings.hydra), open_dict(settings.hydra):
            console_filter.quiet_job(settings.hydra.job_logging)
        console_filter.quiet_handlers()


def _forget_last_job() -> None:
    """Forget what fairseq keeps of another job of a sweep: its best value, and its event files."""
    checkpoint_utils.save_checkpoint.__dict__.pop("best", None)
    early_stopping.forget()
    for writer in progress_bar._tensorboard_writers.values():
        writer.close()
    progress_bar._tensorboard_writers.clear()
