"""Plot of a study: a panel per measure, a row per setting, a point per seed."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from matplotlib.figure import Figure

from mae_ast.study.measure_names import heading, measure_of
from mae_ast.study.runs import Outcome, by_setting

MAX_COLUMNS = 4


def study_figure(title: str, outcomes: Sequence[Outcome], names: Sequence[str]) -> Figure:
    """Plot measures of all cells.

    Args:
        title: title of the plot.
        outcomes: the cells; failed ones are omitted.
        names: names of the measures.
    """
    settings = by_setting(outcomes)
    columns = min(MAX_COLUMNS, max(1, len(names)))
    rows = -(-max(1, len(names)) // columns)
    size = (3.2 * columns + 1.5, rows * (1.0 + 0.28 * len(settings)) + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axis in axes.flat[len(names) :]:
        axis.axis("off")
    for axis, name in zip(axes.flat, names, strict=False):
        for row, own in enumerate(settings.values()):
            values = [
                measure_of(name).factor * each.measures[name]
                for each in own
                if each.measures and name in each.measures
            ]
            if values:
                axis.plot(values, [row] * len(values), "o", color="C0", alpha=0.5, markersize=4)
                axis.plot(statistics.mean(values), row, "|", color="black", markersize=14)
        axis.set_title(heading(name), fontsize=9)
        axis.set_yticks(range(len(settings)), list(settings), fontsize=8)
        axis.set_ylim(len(settings) - 0.5, -0.5)
        axis.grid(alpha=0.3)
    return figure
