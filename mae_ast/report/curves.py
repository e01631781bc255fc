"""Curves of runs: metrics against updates, a panel for each metric."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mae_ast.report.collect import Run

TRAINING, EPOCH_MEANS, FEATURES = "train_inner", "train", "health"  # kinds of lines
MIN_POINTS, MAX_POINTS = 150, 1500  # limits of :func:`max_points`
ALL_POINTS = 6000  # of a metric of all runs
# Group of panels to metrics and their titles; metrics of no group are in the last one.
GROUPS = {
    "Losses": {
        "loss": "loss",
        "mse": "mean squared error",
        "info_nce": "InfoNCE (nats)",
        "info_nce_accuracy": "InfoNCE accuracy",
        "accuracy": "accuracy",
        "mAP": "mAP",
    },
    "Features": {
        "rank_me": "RankMe",
        "linear_accuracy": "linear probe, accuracy",
        "linear_mAP": "linear probe, mAP",
        "knn_accuracy": "k-NN, accuracy",
        "knn_mAP": "k-NN, mAP",
    },
    "Optimisation and speed": {
        "lr": "learning rate",
        "gnorm": "gradient norm",
        "loss_scale": "loss scale",
        "clips_per_s": "clips per second",
    },
}
OTHERS = "Other values"
# Metrics drawn as dashed lines into the panel of another one, with their name in the legend.
REFERENCES = {
    "info_nce_chance": ("info_nce_accuracy", "chance"),
    **{
        f"log_mel_{probe}_{measure}": (f"{probe}_{measure}", "mean log-mel")
        for probe in ("linear", "knn")
        for measure in ("accuracy", "mAP")
    },
}
_NO_METRICS = frozenset(
    ("timestamp", "kind", "epoch", "num_updates", "wall", "train_wall", "skipped", "seconds")
)

Panel = dict[str, Any]


def panels(runs: Sequence[Run]) -> list[Panel]:
    """Return panels in the order of the page, each with ``group``, ``title`` and ``series``.

    A series has the ``run`` (its number), ``kind`` ("training", "reference" or "points"),
    ``label``, and ``x`` (updates) and ``y``. Pretraining and fine-tuning have panels of their own.
    """
    numbered = list(enumerate(runs))
    stages = {
        "pretraining": [each for each in numbered if not each[1].is_finetuned],
        "fine-tuning": [each for each in numbered if each[1].is_finetuned],
    }
    is_mixed = all(stages.values())
    return [
        {**panel, "group": f"{panel['group']}, {stage}" if is_mixed else panel["group"]}
        for stage, some in stages.items()
        for panel in _panels_of(some, max_points(len(runs)))
    ]


def _panels_of(runs: Sequence[tuple[int, Run]], maximum: int) -> list[Panel]:
    metrics = dict.fromkeys(name for _, run in runs for line in run.lines for name in line)
    named = [(group, name, title) for group, own in GROUPS.items() for name, title in own.items()]
    known = {name for _, name, _ in named} | REFERENCES.keys() | _NO_METRICS
    named += [(OTHERS, name, name) for name in metrics if name not in known]
    found = [
        {
            "group": group,
            "title": title,
            "is_minor": group == OTHERS,
            "series": _series_of(runs, name, maximum),
        }
        for group, name, title in named
        if name in metrics
    ]
    return [panel for panel in found if panel["series"]]


def max_points(num_runs: int) -> int:
    """Return the maximum number of points of a curve; more are averaged in groups."""
    return min(max(ALL_POINTS // max(num_runs, 1), MIN_POINTS), MAX_POINTS)


def thinned(points: Sequence[tuple[int, float]], maximum: int) -> tuple[list[int], list[float]]:
    """Return x and y of at most ``maximum`` points: the last x and the mean y of each group."""
    size = -(-len(points) // maximum) or 1
    groups = [points[first : first + size] for first in range(0, len(points), size)]
    means = [sum(y for _, y in group) / len(group) for group in groups]
    return [group[-1][0] for group in groups], [float(f"{mean:.6g}") for mean in means]


def _series_of(runs: Sequence[tuple[int, Run]], name: str, maximum: int) -> list[dict[str, Any]]:
    found = []
    for number, run in runs:
        for kind in dict.fromkeys(line["kind"] for line in run.lines):
            if kind == EPOCH_MEANS:  # of the same values as the training lines
                continue
            label = {TRAINING: "training", FEATURES: "features"}.get(kind, kind)
            drawn = "training" if kind == TRAINING else "points"
            curves = [(name, drawn, label)]
            if kind != TRAINING:
                curves += [
                    (metric, "reference", text)
                    for metric, (panel, text) in REFERENCES.items()
                    if panel == name
                ]
            for metric, drawn, label in curves:
                x, y = thinned(_points(run, kind, metric), maximum)
                found.append({"run": number, "kind": drawn, "label": label, "x": x, "y": y})
    return [series for series in found if series["x"]]


def _points(run: Run, kind: str, metric: str) -> list[tuple[int, float]]:
    return [
        (line["num_updates"], float(line[metric]))
        for line in run.lines
        if line["kind"] == kind and _is_number(line.get(metric))
    ]


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and math.isfinite(value)
