"""Plot labels over time above the spectrogram."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter

from mae_ast.core.inference.timeline import Segment
from mae_ast.core.io.audio import SAMPLE_RATE
from mae_ast.core.io.plural import plural
from mae_ast.evaluate.drawing import short_name
from mae_ast.evaluate.timeline import Timeline

MAX_LABELS = 16  # rows of the plot
_BINS = 2048  # time bins of the rows
_TICK_STEPS_S = (
    *(0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800),
    *(3600, 7200, 10800, 14400, 21600, 43200, 86400),
)
_MAX_TICKS = 12
_MEL_TICKS_HZ = (250, 500, 1000, 2000, 4000, 7000)
_COLORS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377")
_FAINT = 0.25  # opacity of a segment of score 0


def timeline_figure(timeline: Timeline, names: Sequence[str], title: str) -> Figure:
    """Plot the labels with the most time, one row each, and the spectrogram below.

    A segment is the more opaque the higher its score.

    Args:
        timeline: labels and spectrogram of a recording.
        names: names of the classes.
        title: title of the plot.
    """
    labels = _most_frequent(timeline.segments)
    height = 0.3 * max(1, len(labels))
    figure = Figure(figsize=(13, 4.3 + height), layout="constrained")
    rows, spectrogram = figure.subplots(2, 1, sharex=True, height_ratios=(height, 3))
    _draw_labels(rows, timeline, labels, names)
    rows.set_title(title, loc="left", fontsize=12, fontweight="bold", parse_math=False)
    hidden = len({each.label for each in timeline.segments}) - len(labels)
    note = f"; {plural(hidden, 'more label')} in the table" if hidden else ""
    if labels:
        rows.set_title(f"more opaque: higher score{note}", loc="right", fontsize=9, color="0.4")
    _draw_spectrogram(spectrogram, timeline)
    _label_time(spectrogram, timeline.duration_s)
    return figure


def _most_frequent(segments: Sequence[Segment]) -> list[int]:
    """Return the labels with the most time, in order of their first segments."""
    time: dict[int, int] = {}
    for each in segments:
        time[each.label] = time.get(each.label, 0) + each.end - each.start
    kept = set(sorted(time, key=lambda label: -time[label])[:MAX_LABELS])
    return [label for label in time if label in kept]


def _draw_labels(
    axis: Any, timeline: Timeline, labels: Sequence[int], names: Sequence[str]
) -> None:
    """Draw a row per label, first label on top; short segments stay visible in long recordings."""
    colors = np.ones((max(1, len(labels)), _BINS, 4))
    colors[..., 3] = 0
    scale = _BINS / max(timeline.duration_s, 1e-9) / SAMPLE_RATE
    for each in timeline.segments:
        if each.label not in labels:
            continue
        row = labels.index(each.label)
        begin = min(int(each.start * scale), _BINS - 1)
        bins = colors[row, begin : max(begin + 1, round(each.end * scale))]
        bins[:, :3] = to_rgb(_COLORS[row % len(_COLORS)])
        bins[:, 3] = np.maximum(bins[:, 3], _FAINT + (1 - _FAINT) * each.score)
    axis.imshow(
        colors,
        aspect="auto",
        interpolation="nearest",
        extent=(0, timeline.duration_s, len(labels) or 1, 0),
        zorder=1,  # above the grid
    )
    shown = [short_name(names[label]) for label in labels]
    axis.set_yticks(np.arange(len(labels)) + 0.5, shown, fontsize=10, parse_math=False)
    for line in range(1, len(labels)):
        axis.axhline(line, color="white", linewidth=2)
        axis.axhline(line, color="0.85", linewidth=0.5)
    axis.tick_params(axis="both", length=0, labelbottom=False)
    axis.grid(axis="x", color="0.9", linewidth=0.8)
    axis.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    if not labels:
        axis.text(
            0.5, 0.5, "no label reaches the threshold", ha="center", va="center",
            transform=axis.transAxes, color="0.4",
        )  # fmt: skip


def _draw_spectrogram(axis: Any, timeline: Timeline) -> None:
    """Draw log-mel with the frequencies of its bins."""
    values = timeline.log_mel
    if values is None or not len(values):
        axis.set_yticks([])
        return
    low, high = np.quantile(values, [0.02, 0.998])
    axis.imshow(
        values.T,
        origin="lower",
        aspect="auto",
        cmap="magma",
        vmin=low,
        vmax=max(high, low + 1),
        interpolation="nearest" if len(values) < 400 else "antialiased",
        extent=(0, len(values) * timeline.bin_s, 0, values.shape[1]),
    )
    axis.set_xlim(0, timeline.duration_s)
    places = [_mel_bin(hertz, values.shape[1]) for hertz in _MEL_TICKS_HZ]
    axis.set_yticks(places, [_hertz(hertz) for hertz in _MEL_TICKS_HZ])
    axis.set_ylabel("frequency (Hz)")


def _mel_bin(hertz: float, num_bins: int, low: float = 20.0) -> float:
    """Return the position of a frequency among mel bins from ``low`` to half the sample rate."""
    mel = [1127 * np.log1p(f / 700) for f in (low, hertz, SAMPLE_RATE / 2)]
    return float((mel[1] - mel[0]) / (mel[2] - mel[0]) * (num_bins + 1) - 0.5)


def _hertz(value: float) -> str:
    return f"{value / 1000:g} k" if value >= 1000 else f"{value:g}"


def _label_time(axis: Any, duration_s: float) -> None:
    """Label the time axis in seconds, in minutes:seconds or in hours:minutes:seconds."""
    step = next((s for s in _TICK_STEPS_S if duration_s / s <= _MAX_TICKS), _TICK_STEPS_S[-1])
    axis.xaxis.set_major_locator(FixedLocator(np.arange(0, duration_s + 1e-6, step).tolist()))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda at, _: clock(at, duration_s)))
    unit = "s" if duration_s < 60 else "min:s" if duration_s < 3600 else "h:min:s"
    axis.set_xlabel(f"time ({unit})")


def clock(at_s: float, duration_s: float) -> str:
    """Format a time within a recording: 7.5, 1:05, or 2:03:00 in recordings of an hour or more."""
    if duration_s < 60:
        return f"{at_s:g}"
    minutes, seconds = divmod(round(at_s), 60)
    if duration_s < 3600:
        return f"{minutes}:{seconds:02d}"
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
