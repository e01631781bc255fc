"""Cross-validation: a classifier for each fold of a data set, and how far their scores spread.

Each fold is a folder of manifests whose ``valid`` is held out. A fold is trained by a process of
its own that goes on where it was stopped, then the last checkpoint is scored (the best one would
have been chosen by the clips that it is scored on).
"""

from __future__ import annotations

import csv
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
from mae_ast.trainer import sweep
from mae_ast.trainer.resume_guard import assert_same_run

HELD_OUT = "valid"
FILES_OF_A_FOLD = (LABELS_FILE, "train.tsv", "train.lbl", f"{HELD_OUT}.tsv", f"{HELD_OUT}.lbl")
# Each fold has its own; shared, a fold would go on with the weights of another one.
OWN_KEYS = (
    *("task.data", "hydra.run.dir", "checkpoint.save_dir", "checkpoint.restore_file"),
    "common.tensorboard_logdir",
)
SETTINGS_FILE, SCORES_FILE = "settings.json", "folds.csv"
DIGITS = 4  # of scores, shown and written
_TASK = "MaeAstClassificationTask"  # checkpoints store the task's state under this name


@dataclass(frozen=True)
class FoldScore:
    """What was reached on a fold's held-out clips.

    Args:
        fold: its name.
        clips: number of them.
        score: accuracy or mean average precision, rounded to four digits.
    """

    fold: str
    clips: int
    score: float


def find_folds(data: Path) -> list[Path]:
    """The folders ``fold*`` of a data set, by number.

    Raises:
        FileNotFoundError: there are not at least two, or one of their files is not there.
    """
    found = [path for path in data.glob("fold*") if path.is_dir()]
    if len(found) < 2:
        raise FileNotFoundError(
            f"{data}: {plural(len(found), 'folder')} fold* in it; two at least are needed, fold1, "
            "fold2, ..., such as 'mae-ast prepare esc50' writes"
        )
    for folder in found:
        for name in FILES_OF_A_FOLD:
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder / name}: no such file; each fold has one")
    return sorted(found, key=lambda path: (int("0" + _digits(path.name)), path.name))


def check_overrides(overrides: Sequence[str]) -> None:
    """Refuse settings that all folds would share.

    Raises:
        ValueError: one is among them.
    """
    if sweep.is_multirun(overrides):
        raise ValueError("--multirun: the folds are the jobs; leave it out")
    for override in overrides:
        key, _, value = override.partition("=")
        if key.lstrip("+") in OWN_KEYS and value != "null":
            raise ValueError(f"{override}: each fold has its own; --out is the folder of all")


def is_trained(run: Path) -> bool:
    """Return whether a run is complete: its last update, epoch or hour, or early stopping.

    Raises:
        CheckpointError: all its checkpoints are damaged.
    """
    state = _last_state(run)
    if state is None:
        return False
    limits: dict[str, Any] = state["cfg"]["optimization"]
    extra: dict[str, Any] = state["extra_state"]
    updates = state["optimizer_history"][-1]["num_updates"]
    hours = extra.get("previous_training_time", 0) / 3600
    without_gain = extra.get(_TASK, {}).get("early_stopping", {}).get("num_runs", 0)
    return bool(
        0 < limits["max_update"] <= updates
        or 0 < limits["max_epoch"] < extra["train_iterator"]["epoch"]
        or 0 < (limits.get("stop_time_hours") or 0) < hours
        or 0 < state["cfg"].get("checkpoint", {}).get("patience", -1) <= without_gain
    )


def was_interrupted(run: Path) -> bool:
    """Return whether a run was last saved on a signal, or never."""
    state = _last_state(run)
    return state is None or bool(state["extra_state"].get(_TASK, {}).get("interrupted", False))


def _last_state(run: Path) -> dict[str, Any] | None:
    last = latest(run / RUN_FILE.parent)
    return None if last is None else read_state(last)


@contextmanager
def working_in(out: Path, settings: dict[str, Any]) -> Iterator[int]:
    """Make the folder of all folds, for one program at a time and one kind of training.

    Yields:
        A file descriptor: whoever has it open keeps others out.

    Raises:
        ValueError: another program is at work there, or its folds were trained otherwise.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / SETTINGS_FILE
    with file_lock(path) as lock:
        assert_same_run(path, settings, any(out.glob("*/checkpoints/*.pt")))
        yield lock


def mean_and_spread(scores: Sequence[FoldScore]) -> tuple[float, float]:
    """Mean and standard deviation (of a sample: n - 1), rounded as the scores are."""
    values = np.array([each.score for each in scores])
    return round(float(values.mean()), DIGITS), round(float(values.std(ddof=1)), DIGITS)


def table(scores: Sequence[FoldScore], measure: str) -> str:
    """Folds, mean and standard deviation, for people."""
    mean, spread = mean_and_spread(scores)
    lines = [f"{'fold':20}{'clips':>7}{measure:>10}"]
    lines += [f"{each.fold:20}{each.clips:7}{each.score:10.4f}" for each in scores]
    lines += [f"{name:27}{value:10.4f}" for name, value in _summary(mean, spread)]
    return "\n".join(lines)


def write_scores(path: Path, scores: Sequence[FoldScore], measure: str) -> None:
    """The same as CSV: a row for each fold, then mean and standard deviation."""
    clips = sum(each.clips for each in scores)
    with atomic_write(path) as part, part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("fold", "clips", measure))
        writer.writerows((each.fold, each.clips, f"{each.score:.4f}") for each in scores)
        summary = _summary(*mean_and_spread(scores))
        writer.writerows((name, clips, f"{value:.4f}") for name, value in summary)


def _summary(mean: float, spread: float) -> tuple[tuple[str, float], ...]:
    return ("mean", mean), ("standard deviation", spread)


def _digits(name: str) -> str:
    return "".join(c for c in name if c in "0123456789")
