"""Plots with class names of any length and script."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from mae_ast.core.inference.timeline import Segment
from mae_ast.core.io.labels import Labels
from mae_ast.evaluate.drawing import MAX_CHARACTERS, save_figure, short_name
from mae_ast.evaluate.metrics import ClassScores, Summary
from mae_ast.evaluate.report import Evaluation, confusion_figure, write_report
from mae_ast.evaluate.timeline import Timeline
from mae_ast.evaluate.timeline_figure import timeline_figure
from mae_ast.prepare.summary import Summary as ClipSummary

NAMES = ("日本語の鳥", "$x^2$ and $y", "a long name without spaces ".replace(" ", "_") * 5)


def test_long_names_stay_different() -> None:
    names = [f"Eurasian reed warbler, subspecies of the site number {n}" for n in range(50)]
    short = [short_name(name) for name in names]
    assert len(set(short)) == 50
    assert {len(name) for name in short} == {MAX_CHARACTERS}
    assert short_name("dog") == "dog"


@pytest.mark.parametrize("num_classes", [2, 3])
def test_names_are_drawn_as_they_are_and_fit(tmp_path: Path, num_classes: int) -> None:
    """Neither missing glyphs nor mathematics nor a collapsed layout; no name is cut."""
    names = NAMES[-num_classes:]
    counts = np.arange(num_classes**2).reshape(num_classes, -1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        matrix = confusion_figure(counts, names, "$x^2$, test")
        save_figure(matrix, tmp_path / "matrix.png")
        segments = [Segment(0, 16_000, n, 0.5) for n in range(num_classes)]
        found = Timeline(segments, 1.0, np.zeros((64, 128), np.float32), 1 / 64)
        rows = timeline_figure(found, names, "$x^2$.wav")
        save_figure(rows, tmp_path / "rows.png")
        labels = Labels(names, names)
        hours, seconds = np.ones(num_classes), (np.ones(3),)
        clips = ClipSummary(("train",), labels, counts[-1:], hours, seconds, False)
        clips.draw(tmp_path / "summary.png")
    for figure in (matrix, rows):
        axis = figure.axes[0]
        ticks = axis.get_yticklabels()
        assert [tick.get_text() for tick in ticks] == [short_name(name) for name in names]
        assert not any(text.get_parse_math() for text in ticks)
        assert axis.get_window_extent().width > 100
    assert not matrix.axes[0].title.get_parse_math()
    for name in ("matrix", "rows", "summary"):
        pixels = matplotlib.image.imread(tmp_path / f"{name}.png")
        assert all((edge == 1).all() for edge in (pixels[:, 0], pixels[:, -1], pixels[-1]))
    texts = [text.get_text() for text in matrix.axes[0].texts]
    assert texts == [str(n) for n in range(num_classes**2)]


def test_report_has_no_plot_of_an_earlier_one(tmp_path: Path) -> None:
    """A report on clips with several labels in the folder of one with a confusion matrix."""
    scores = np.eye(2)
    metrics = ClassScores(*[np.ones(2)] * 2, *[np.ones(2, np.int64)] * 2)
    summary = Summary(math.nan, 1.0, 1.0, 1.0, 2, 2)
    labels = Labels(("a", "b"), ("a", "b"))
    for confusion in (np.eye(2, dtype=np.int64), None):
        found = Evaluation(labels, scores, scores, 0, metrics, summary, confusion)
        written = write_report(found, tmp_path, "test")
        assert {path.name for path in tmp_path.iterdir()} == {path.name for path in written}
