"""Cross-validation: train a classifier per fold, and report the mean and std of the scores.

Each fold is a folder of manifests whose ``valid`` split is held out. Each fold is trained by its
own process, which resumes an interrupted run; then the last checkpoint is scored (the best one
would have been selected on the clips that it is scored on).
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mae_ast.core.io.atomic import atomic_write
from mae_ast.core.io.labels import LABELS_FILE
from mae_ast.core.io.plural import plural
from mae_ast.trainer import resume_guard, sweep

HELD_OUT = "valid"
FILES_OF_A_FOLD = (LABELS_FILE, "train.tsv", "train.lbl", f"{HELD_OUT}.tsv", f"{HELD_OUT}.lbl")
# Set per fold; if shared, a fold would resume with the weights of another one.
OWN_KEYS = (
    *("task.data", "hydra.run.dir", "checkpoint.save_dir", "checkpoint.restore_file"),
    "common.tensorboard_logdir",
)
SCORES_FILE = "folds.csv"
DIGITS = 4  # decimal places of scores


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
