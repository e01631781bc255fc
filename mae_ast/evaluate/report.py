"""A report on a fine-tuned classifier: figures, a row for each class, a confusion matrix."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from mae_ast.core.io.labels import LABELS_FILE, ClipLabels, LabelError, Labels
from mae_ast.core.io.manifest import Manifest, Progress
from mae_ast.core.io.plural import plural
from mae_ast.evaluate.metrics import (
    ClassScores,
    Summary,
    class_scores,
    confusion,
    d_prime,
    summarise,
)
from mae_ast.evaluate.predict import score_manifest
from mae_ast.finetune.checkpoint import FineTuned

COLUMNS = ("index", "mid", "display_name", "clips", "average_precision", "auc", "d_prime")
MAX_NAMED_CLASSES = 60  # of a picture with room for names


@dataclass(frozen=True)
class Evaluation:
    """What a classifier is worth on a split.

    Args:
        labels: the classes.
        scores, targets: (R, C), of the clips that could be used.
        num_left_out: clips that could not.
        classes: per class.
        summary: over all.
        confusion: (C, C) counts, row the true class; ``None`` where clips have several.
    """

    labels: Labels
    scores: np.ndarray
    targets: np.ndarray
    num_left_out: int
    classes: ClassScores
    summary: Summary
    confusion: np.ndarray | None


def evaluate(
    classifier: FineTuned, data: Path, split: str, progress: Progress | None = None
) -> Evaluation:
    """Score a split and compare with its labels.

    Args:
        classifier: on any device.
        data: folder of ``{split}.tsv``, ``{split}.lbl`` and ``labels.csv``.
        split: its name.
        progress: as of :func:`mae_ast.evaluate.predict.score_manifest`.

    Raises:
        FileNotFoundError: one of the files is not there.
        ManifestError, LabelError: one cannot be used.
        AudioError: none of the clips can.
        LabelError: the classes are not those that the classifier was trained on.
    """
    labels = Labels.read(data / LABELS_FILE)
    own = classifier.labels  # of published files, names alone are known
    if labels.mids != own.mids and labels.names != own.names:
        raise LabelError(
            f"{data / LABELS_FILE}: has {plural(len(labels), 'class', 'classes')}, not the "
            f"{len(own)} of the checkpoint in the same order; evaluate on data that were "
            "prepared in the same way"
        )
    manifest = Manifest.load(data / f"{split}.tsv")
    targets = ClipLabels.read(data / f"{split}.lbl", labels, len(manifest)).multi_hot(
        np.arange(len(manifest))
    )
    multi_label = classifier.description.multi_label or bool((targets.sum(1) > 1).any())
    scores, used = score_manifest(classifier, manifest, progress)
    scores, targets = scores[used], targets[used]
    classes = class_scores(scores, targets)
    return Evaluation(
        labels,
        scores,
        targets,
        int((~used).sum()),
        classes,
        summarise(scores, targets, multi_label, classes),
        None if multi_label else confusion(scores, targets),
    )


def write_report(found: Evaluation, out: Path, title: str) -> list[Path]:
    """Write ``summary.json``, ``classes.csv`` and, for one label a clip, ``confusion.png``.

    Args:
        found: what to report.
        out: folder, made where it is not there.
        title: of the picture.
    """
    out.mkdir(parents=True, exist_ok=True)
    summary, classes = out / "summary.json", out / "classes.csv"
    values = {**dataclasses.asdict(found.summary), "num_left_out": found.num_left_out}
    finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
    summary.write_text(json.dumps(finite, indent=1) + "\n", encoding="utf-8")
    with classes.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS if found.confusion is None else (*COLUMNS, "recall"))
        writer.writerows(_rows(found))
    if found.confusion is None:
        return [summary, classes]
    picture = out / "confusion.png"
    confusion_figure(found.confusion, found.labels.names, title).savefig(picture, dpi=120)
    return [summary, classes, picture]


def confusion_figure(counts: np.ndarray, names: tuple[str, ...], title: str = "") -> Figure:
    """A picture of (C, C) counts, each row as shares of the class's clips."""
    clips = counts.sum(1, keepdims=True)
    shares = counts / np.maximum(clips, 1)
    size = 3.0 + 0.25 * min(len(names), MAX_NAMED_CLASSES)
    figure = Figure(figsize=(size + 0.8, size), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(shares, cmap="magma", vmin=0, vmax=1, interpolation="nearest")
    figure.colorbar(image, ax=axis, shrink=0.8, label="share of the class's clips")
    if len(names) <= MAX_NAMED_CLASSES:
        places = np.arange(len(names))
        axis.set_xticks(places, names, rotation=90, fontsize=8)
        axis.set_yticks(places, names, fontsize=8)
    axis.set_xlabel("highest score")
    axis.set_ylabel("class")
    axis.set_title(title)
    return figure


def _rows(found: Evaluation) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    for index, (mid, name) in enumerate(zip(found.labels.mids, found.labels.names, strict=True)):
        clips = int(found.classes.num_clips[index])
        auc = float(found.classes.auc[index])
        distance = d_prime(auc, int(found.classes.num_pairs[index]))
        values = [float(found.classes.average_precision[index]), auc, distance]
        if found.confusion is not None:
            values.append(found.confusion[index, index] / clips if clips else math.nan)
        texts = ["" if math.isnan(value) else f"{value:.5f}" for value in values]
        rows.append((index, mid, name, clips, *texts))
    return rows
