"""Report on a fine-tuned classifier: metrics, one row per class, a confusion matrix."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from mae_ast.core.checkpoints.training_record import data_name
from mae_ast.core.io.labels import LABELS_FILE, ClipLabels, LabelError, Labels
from mae_ast.core.io.manifest import Manifest
from mae_ast.core.io.plural import plural
from mae_ast.core.io.read_ahead import Progress
from mae_ast.evaluate.drawing import save_figure, short_name
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
MAX_NAMED_CLASSES = 60  # a plot with more classes has no tick labels
MAX_COUNTED_CLASSES = 20  # a plot with more classes has no counts in its cells


@dataclass(frozen=True)
class Evaluation:
    """Evaluation of a classifier on a split.

    Args:
        labels: the classes.
        scores, targets: (R, C) of the usable clips.
        num_skipped: number of clips that could not be used.
        classes: metrics per class.
        summary: metrics over all classes.
        confusion: (C, C) counts, row the true class; ``None`` if clips have several classes.
        data, split: names of the data's folder and of the split.
        checkpoints: names of the classifier's checkpoint files.
    """

    labels: Labels
    scores: np.ndarray
    targets: np.ndarray
    num_skipped: int
    classes: ClassScores
    summary: Summary
    confusion: np.ndarray | None
    data: str = ""
    split: str = ""
    checkpoints: tuple[str, ...] = ()


def evaluate(
    classifier: FineTuned, data: Path, split: str, progress: Progress | None = None
) -> Evaluation:
    """Score a split and compare with its labels.

    Args:
        classifier: classifier on any device.
        data: folder of ``{split}.tsv``, ``{split}.lbl`` and ``labels.csv``.
        split: name of the split.
        progress: as in :func:`mae_ast.evaluate.predict.score_manifest`.

    Raises:
        FileNotFoundError: one of the files does not exist.
        ManifestError: the manifest is invalid.
        AudioError: no clip can be used.
        LabelError: labels are invalid, or the classes are not those of the classifier.
    """
    labels = Labels.read(data / LABELS_FILE)
    own = classifier.labels  # a published checkpoint only has the names
    if labels.mids != own.mids and labels.names != own.names:
        raise LabelError(
            f"{data / LABELS_FILE}: has {plural(len(labels), 'class', 'classes')}, not the "
            f"{len(own)} of the checkpoint in the same order; evaluate on data that was prepared "
            "in the same way"
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
        data_name(data.resolve()),
        split,
        classifier.files,
    )


def write_report(found: Evaluation, out: Path, title: str) -> list[Path]:
    """Write ``summary.json``, ``classes.csv`` and, for one label per clip, ``confusion.png``.

    Args:
        found: evaluation to report.
        out: output folder, created if it does not exist.
        title: title of the plot.

    Returns:
        The paths of the written files.
    """
    out.mkdir(parents=True, exist_ok=True)
    summary, classes = out / "summary.json", out / "classes.csv"
    values = {**dataclasses.asdict(found.summary), "num_left_out": found.num_skipped}
    finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
    names = {"data": found.data, "split": found.split, "checkpoints": found.checkpoints}
    summary.write_text(json.dumps(names | finite, indent=1) + "\n", encoding="utf-8")
    with classes.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS if found.confusion is None else (*COLUMNS, "recall"))
        writer.writerows(_rows(found))
    plot = out / "confusion.png"
    if found.confusion is None:
        plot.unlink(missing_ok=True)  # of an earlier report
        return [summary, classes]
    save_figure(confusion_figure(found.confusion, found.labels.names, title), plot)
    return [summary, classes, plot]


def confusion_figure(counts: np.ndarray, names: tuple[str, ...], title: str = "") -> Figure:
    """Plot (C, C) counts, each row normalised by the number of the class's clips."""
    clips = counts.sum(1, keepdims=True)
    normalized = counts / np.maximum(clips, 1)
    shown = [short_name(name) for name in names] if len(names) <= MAX_NAMED_CLASSES else []
    size = 3.0 + 0.25 * min(len(names), MAX_NAMED_CLASSES)
    size += 0.07 * max((len(name) - 8 for name in shown if len(name) > 8), default=0)
    figure = Figure(figsize=(size + 0.8, size), layout="compressed")
    axis = figure.subplots()
    image = axis.imshow(normalized, cmap="magma", vmin=0, vmax=1, interpolation="nearest")
    figure.colorbar(image, ax=axis, shrink=0.8, label="fraction of the class's clips")
    if shown:
        ticks = np.arange(len(shown))
        axis.set_xticks(ticks, shown, rotation=90, fontsize=8, parse_math=False)
        axis.set_yticks(ticks, shown, fontsize=8, parse_math=False)
    if len(names) <= MAX_COUNTED_CLASSES:
        for (row, column), count in np.ndenumerate(counts):
            color = "black" if normalized[row, column] > 0.6 else "white"
            axis.text(column, row, str(count), ha="center", va="center", color=color, fontsize=8)
    axis.set_xlabel("predicted class")
    axis.set_ylabel("true class")
    axis.set_title(title, parse_math=False)
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
