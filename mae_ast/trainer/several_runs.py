"""Several runs of one command, each in a folder of its own below the command's folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mae_ast.core.checkpoints.reader import RUN_FILE, read_state
from mae_ast.core.checkpoints.run_files import latest
from mae_ast.core.io.atomic import file_lock
from mae_ast.core.io.settings_note import write_note
from mae_ast.trainer import resume_guard

SETTINGS_FILE = "settings.json"  # in the command's folder
# Checkpoints store the state of the task under one of these names.
_TASKS = ("MaeAstPretrainingTask", "MaeAstClassificationTask")


def is_trained(run: Path) -> bool:
    """Return whether a run reached its limit of updates, epochs or hours, or stopped early.

    Raises:
        CheckpointError: all checkpoints of the run are damaged.
    """
    state = _last_state(run)
    if state is None:
        return False
    limits: dict[str, Any] = state["cfg"]["optimization"]
    extra: dict[str, Any] = state["extra_state"]
    updates = state["optimizer_history"][-1]["num_updates"]
    hours = extra.get("previous_training_time", 0) / 3600
    without_improvement = _of_task(state).get("early_stopping", {}).get("num_runs", 0)
    return bool(
        0 < limits["max_update"] <= updates
        or 0 < limits["max_epoch"] < extra["train_iterator"]["epoch"]
        or 0 < (limits.get("stop_time_hours") or 0) < hours
        or 0 < state["cfg"].get("checkpoint", {}).get("patience", -1) <= without_improvement
    )


def was_interrupted(run: Path) -> bool:
    """Return whether a run has no checkpoint, or its last one was saved on a signal."""
    state = _last_state(run)
    return state is None or bool(_of_task(state).get("interrupted", False))


def _last_state(run: Path) -> dict[str, Any] | None:
    last = latest(run / RUN_FILE.parent)
    return None if last is None else read_state(last)


def _of_task(state: dict[str, Any]) -> dict[str, Any]:
    extra = state["extra_state"]
    found: dict[str, Any] = next((extra[name] for name in _TASKS if name in extra), {})
    return found


@contextmanager
def working_in(
    out: Path, settings: dict[str, Any], inputs: dict[str, Any] | None = None
) -> Iterator[int]:
    """Create and lock the folder of all runs, and check that its settings are unchanged.

    Args:
        out: the folder.
        settings: settings that must not change, as JSON values.
        inputs: the same for what earlier versions did not record.

    Yields:
        The file descriptor of the lock, which is held while any process has it open.

    Raises:
        ValueError: another process holds the lock, or runs were started with other settings.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / SETTINGS_FILE
    with file_lock(path) as lock:
        current = {**settings, **(inputs or {})}
        if path.is_file() and has_begun(out):
            resume_guard.assert_same_run(path, current, added=inputs)
        else:
            write_note(path, current)
        yield lock


def has_begun(out: Path) -> bool:
    """Return ``True`` if a run has a checkpoint."""
    return any(out.glob("*/checkpoints/*.pt"))
