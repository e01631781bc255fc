"""Cross-validation: train a classifier per fold, and report the mean and std of the scores.

Each fold is a folder of manifests whose ``valid`` split is held out. Each fold is trained by its
own process, which resumes an interrupted run; then the last checkpoint is scored (the best one
would have been selected on the clips that it is scored on).
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mae_ast.core.checkpoints.reader import RUN_FILE, read_state
from mae_ast.core.checkpoints.run_files import latest
from mae_ast.core.io.atomic import atomic_write, file_lock
from mae_ast.core.io.labels import LABELS_FILE
from mae_ast.core.io.plural import plural
from mae_ast.core.io.settings_note import write_note
from mae_ast.trainer import resume_guard, sweep

HELD_OUT = "valid"
FILES_OF_A_FOLD = (LABELS_FILE, "train.tsv", "train.lbl", f"{HELD_OUT}.tsv", f"{HELD_OUT}.lbl")
# Set per fold; if shared, a fold would resume with the weights of another one.
OWN_KEYS = (
    *("task.data", "hydra.run.dir", "checkpoint.save_dir", "checkpoint.restore_file"),
    "common.tensorboard_logdir",
)
SETTINGS_FILE, SCORES_FILE = "settings.json", "folds.csv"
DIGITS = 4  # decimal places of scores
_TASK = "MaeAstClassificationTask"  # checkpoints store the task's state under this name


@dataclass(frozen=True)
class FoldScore:
    """Score on the held-out clips of a fold.

    Args:
        fold: name of the fold.
        clips: number of held-out clips.
        measure: accuracy, or mAP (mean average precision) if clips have several labels.
        score: its value, rounded to four decimal places.
    """

    fold: str
    clips: int
    measure: str
    score: float


def find_folds(data: Path) -> list[Path]:
    """Return the folders ``fold*`` of a data set, sorted by number.

    Raises:
        FileNotFoundError: there are fewer than two folds, or a file is missing in one.
    """
    found = [path for path in data.glob("fold*") if path.is_dir()]
    if len(found) < 2:
        raise FileNotFoundError(
            f"{data}: contains {plural(len(found), 'folder')} fold*; at least two are required "
            "(fold1, fold2, ...), as 'mae-ast prepare' writes them for ESC-50 or with --folds"
        )
    for folder in found:
        for name in FILES_OF_A_FOLD:
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder / name}: no such file; every fold needs it")
    return sorted(found, key=lambda path: (int("0" + re.sub(r"\D", "", path.name)), path.name))


def inputs_of(folders: Sequence[Path]) -> dict[str, str]:
    """Return the content of the folds' manifests and labels, for :func:`working_in`."""
    inputs: dict[str, str] = {}
    for folder in folders:
        inputs |= resume_guard.inputs_of(folder, FILES_OF_A_FOLD, f"{folder.name}/")
    return inputs


def check_overrides(overrides: Sequence[str]) -> None:
    """Refuse settings that must differ between folds.

    Raises:
        ValueError: such a setting is given; it is named.
    """
    if sweep.is_multirun(overrides):
        raise ValueError("--multirun is not supported: each fold is a job already")
    for override in overrides:
        key, _, value = override.partition("=")
        if key.lstrip("+") in OWN_KEYS and value != "null":
            raise ValueError(f"{override}: each fold has its own; set --out for all folds")


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
    without_improvement = extra.get(_TASK, {}).get("early_stopping", {}).get("num_runs", 0)
    return bool(
        0 < limits["max_update"] <= updates
        or 0 < limits["max_epoch"] < extra["train_iterator"]["epoch"]
        or 0 < (limits.get("stop_time_hours") or 0) < hours
        or 0 < state["cfg"].get("checkpoint", {}).get("patience", -1) <= without_improvement
    )


def was_interrupted(run: Path) -> bool:
    """Return whether a run has no checkpoint, or its last one was saved on a signal."""
    state = _last_state(run)
    return state is None or bool(state["extra_state"].get(_TASK, {}).get("interrupted", False))


def _last_state(run: Path) -> dict[str, Any] | None:
    last = latest(run / RUN_FILE.parent)
    return None if last is None else read_state(last)


@contextmanager
def working_in(
    out: Path, settings: dict[str, Any], inputs: dict[str, Any] | None = None
) -> Iterator[int]:
    """Create and lock the folder of all folds, and check that its settings are unchanged.

    Args:
        out: the folder.
        settings: settings that must not change, as JSON values.
        inputs: the same for what earlier versions did not record: the content of the folds.

    Yields:
        The file descriptor of the lock, which is held while any process has it open.

    Raises:
        ValueError: another process holds the lock, or folds were trained with other settings.
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
    """Return ``True`` if a fold has a checkpoint."""
    return any(out.glob("*/checkpoints/*.pt"))


def table(scores: Sequence[FoldScore]) -> str:
    """Format the scores of all folds with their mean and std as a text table."""
    lines = [f"{'fold':20}{'clips':>7}{scores[0].measure:>10}"]
    lines += [f"{each.fold:20}{each.clips:7}{each.score:10.4f}" for each in scores]
    lines += [f"{name:27}{value:10.4f}" for name, value in _summary(scores)]
    return "\n".join(lines)


def write_scores(path: Path, scores: Sequence[FoldScore]) -> None:
    """Write a CSV file: one row per fold, then the mean and std."""
    clips = sum(each.clips for each in scores)
    with atomic_write(path) as part, part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("fold", "clips", scores[0].measure))
        writer.writerows((each.fold, each.clips, f"{each.score:.4f}") for each in scores)
        writer.writerows((name, clips, f"{value:.4f}") for name, value in _summary(scores))


def _summary(scores: Sequence[FoldScore]) -> list[tuple[str, float]]:
    """Return the mean and the sample std (n - 1) of the rounded scores."""
    values = np.array([each.score for each in scores])
    return [("mean", float(values.mean())), ("std", float(values.std(ddof=1)))]
