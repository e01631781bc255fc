"""Weights & Biases (``common.wandb_project``): the same run after a resume, named by its folder.

fairseq logs no tensors, which the losses are, imports wandb in every process, and starts a new run,
named "checkpoints", at each start.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fairseq.logging import progress_bar

from mae_ast.core.io.first_line import first_line
from mae_ast.trainer.metrics_log import number

RUN_ID = "WANDB_RUN_ID"  # environment variable

_run_id: str | None = None  # of the training in this process
_wandb: Any = None  # the module, once a run has begun


def apply() -> None:
    """Replace fairseq's class; call it once."""
    # Remove when fairseq logs tensors and resumes runs.
    progress_bar.WandBProgressBarWrapper = WandBBar


def check(cfg: Any) -> None:
    """Refuse ``common.wandb_project`` without the package.

    Raises:
        ValueError: wandb is not installed.
    """
    if cfg.common.wandb_project and find_spec("wandb") is None:
        raise ValueError(
            f"common.wandb_project={cfg.common.wandb_project}: wandb is not installed; "
            "pip install wandb"
        )


def begin(run_id: str | None) -> None:
    """Set the ID of the run that the next progress bar starts or resumes."""
    global _run_id
    _run_id = run_id


def log(kind: str, num_updates: int, values: Mapping[str, Any]) -> None:
    """Log values as ``KIND/NAME``; do nothing if no run has begun in this process."""
    if _wandb is not None:
        numbers = {f"{kind}/{name}": number(value) for name, value in values.items()}
        _wandb.log({k: v for k, v in numbers.items() if v is not None}, step=num_updates)


def end() -> None:
    """Finish the run, so that the next job of a sweep begins its own."""
    global _wandb
    if _wandb is not None:
        _wandb.finish()
        _wandb = None


class WandBBar(progress_bar.BaseProgressBar):  # type: ignore[misc]
    """Progress bar that also logs to Weights & Biases.

    Args:
        wrapped_bar: another progress bar of fairseq.
        wandb_project: name of the project.
        run_name: ignored unless ``WANDB_NAME`` is set: fairseq's default is the same for all runs.

    Raises:
        ValueError: the run cannot be started.
    """

    def __init__(self, wrapped_bar: Any, wandb_project: str, run_name: str | None = None) -> None:
        global _wandb
        self.wrapped_bar = wrapped_bar
        if _wandb is not None:
            return
        name = os.environ.get("WANDB_NAME") or "/".join(Path.cwd().parts[-2:])
        try:
            wandb = importlib.import_module("wandb")  # takes a second
            wandb.init(
                project=wandb_project, name=name, id=_run_id, resume="allow", allow_val_change=True
            )
        except Exception as error:  # its classes differ between versions
            raise ValueError(
                f"common.wandb_project={wandb_project}: cannot start a run ({first_line(error)}); "
                "run `wandb login`, or set WANDB_MODE=offline"
            ) from error
        _wandb = wandb

    def __iter__(self) -> Any:
        return iter(self.wrapped_bar)

    def log(self, stats: Any, tag: str | None = None, step: int | None = None) -> None:
        """Log values within an epoch."""
        self._log(self.wrapped_bar.log, stats, tag, step)

    def print(self, stats: Any, tag: str | None = None, step: int | None = None) -> None:
        """Log values at the end of an epoch."""
        self._log(self.wrapped_bar.print, stats, tag, step)

    def update_config(self, config: Any) -> None:
        """Record the settings of the run."""
        if _wandb is not None:
            _wandb.config.update(config, allow_val_change=True)
        self.wrapped_bar.update_config(config)

    def _log(
        self, log_wrapped: Callable[..., None], stats: Any, tag: str | None, step: int | None
    ) -> None:
        num_updates = int(stats["num_updates"]) if step is None else step
        values = {name: value for name, value in stats.items() if name != "num_updates"}
        log(tag or "train_inner", num_updates, values)
        log_wrapped(stats, tag=tag, step=step)
