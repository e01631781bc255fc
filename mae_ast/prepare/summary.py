"""Summary of labelled clips: clips and hours of each class, as a table and as a figure."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mae_ast.core.io.atomic import atomic_write
from mae_ast.core.io.audio import AudioInfo
from mae_ast.core.io.labels import Labels
from mae_ast.prepare.clips import Clip
from mae_ast.prepare.own_clip import OwnClip

TABLE_FILE, FIGURE_FILE = "summary.csv", "summary.png"
MAX_NAMED_CLASSES = 40  # a figure with more classes has no tick labels


@dataclass(frozen=True)
class Summary:
    """Statistics of labelled clips.

    Args:
        parts: names of the P splits or folds.
        labels: the C classes.
        counts: (P, C) int64, number of clips of each class.
        hours: (C,) float64, duration of the clips of each class.
        seconds: durations of the clips of each split or fold.
        multi_label: a clip has several labels.
    """

    parts: tuple[str, ...]
    labels: Labels
    counts: np.ndarray
    hours: np.ndarray
    seconds: tuple[np.ndarray, ...]
    multi_label: bool

    @property
    def imbalance(self) -> float:
        """Clips of the largest class per clip of the smallest."""
        totals = self.counts.sum(0)
        return float(totals.max() / totals.min())

    def rows(self) -> list[tuple[str, ...]]:
        """Return the table: a header, then a row for each class."""
        header = ("class", *self.parts, "clips", "hours")
        values = zip(self.labels.names, self.counts.T, self.hours, strict=True)
        return [
            header,
            *(
                (name, *(str(count) for count in counts), str(counts.sum()), f"{hours:.4f}")
                for name, counts, hours in values
            ),
        ]

    def write(self, out: Path) -> None:
        """Write the table to ``summary.csv``."""
        path = out / TABLE_FILE
        with atomic_write(path) as part, part.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(self.rows())

    def draw(self, path: Path) -> None:
        """Plot clips per class and split, and a histogram of the clips' lengths.

        Raises:
            ImportError: matplotlib is not installed.
        """
        from matplotlib.figure import Figure

        from mae_ast.evaluate.drawing import save_figure, short_name

        num_classes = len(self.labels)
        order, width, height = np.arange(num_classes), 0.8, 1.6 + 0.24 * max(num_classes, 8)
        if num_classes > MAX_NAMED_CLASSES:  # only their distribution can be seen
            order, width, height = np.argsort(-self.counts.sum(0), kind="stable"), 1.0, 5.0
        figure = Figure(figsize=(11, height), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        places, before = np.arange(num_classes), np.zeros(num_classes)
        edges = self._length_bins()
        for part, counts in zip(self.parts, self.counts, strict=True):
            left.barh(places, counts[order], left=before, label=part, height=width)
            before += counts[order]
        right.hist(self.seconds, bins=edges, stacked=True, label=self.parts)
        if num_classes <= MAX_NAMED_CLASSES:
            names = [short_name(name) for name in self.labels.names]
            left.set_yticks(places, names, fontsize=8, parse_math=False)
        else:
            left.set_ylabel("classes, by number of clips")
        left.set_ylim(num_classes - 0.5, -0.5)
        left.set_xlabel("clips")
        handles, parts = left.get_legend_handles_labels()
        figure.legend(handles, parts, loc="outside upper center", ncols=10)
        right.set_xlabel("length of a clip (s)")
        right.set_ylabel("clips")
        if edges[-1] > 20 * edges[0] and edges[0] > 0:
            right.set_xscale("log")
        save_figure(figure, path)

    def _length_bins(self) -> np.ndarray:
        """Return the edges of 30 bins; of equal ratio if the lengths differ by a factor of 20."""
        lengths = np.concatenate(self.seconds)
        low, high = float(lengths.min()), float(lengths.max())
        if high > 20 * low:
            return np.geomspace(low, high, 31)
        margin = 0.05 * high
        return np.linspace(max(0.0, low - margin), high + margin, 31)


def summarise(
    parts: Mapping[str, Sequence[OwnClip]],
    clips: Mapping[OwnClip, Clip],
    infos: Mapping[str, AudioInfo],
    labels: Labels,
) -> Summary:
    """Count the clips of each class.

    Args:
        parts: split or fold to its clips.
        clips: their segments in samples.
        infos: path to length and sample rate.
        labels: the classes.
    """
    index = {name: number for number, name in enumerate(labels.names)}
    counts = np.zeros((len(parts), len(labels)), dtype=np.int64)
    hours = np.zeros(len(labels))
    seconds = []
    for row, some in zip(counts, parts.values(), strict=True):
        lengths = [clips[own].seconds(infos[own.path]) for own in some]
        seconds.append(np.array(lengths))
        for own, length in zip(some, lengths, strict=True):
            for name in own.labels:
                row[index[name]] += 1
                hours[index[name]] += length / 3600
    multi_label = any(len(own.labels) > 1 for some in parts.values() for own in some)
    return Summary(tuple(parts), labels, counts, hours, tuple(seconds), multi_label)
