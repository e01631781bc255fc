"""Plot of training curves."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image

from mae_ast.evaluate.training_curves import curves_figure, write_curves
from mae_ast.trainer.metrics_log import METRICS_FILE, MetricsLog


def test_each_metric_has_a_panel_and_each_kind_a_curve() -> None:
    lines = [{"kind": "train_inner", "num_updates": n, "loss": 2 / n, "mse": 1} for n in (1, 2, 3)]
    lines += [{"kind": "valid", "num_updates": 3, "loss": 0.5, "mse": None}]
    lines += [{"kind": "train", "num_updates": 3, "loss": 9.0}]
    lines += [{"kind": "health", "num_updates": 2, "rank_me": 7.0}]
    axes = curves_figure(lines).axes
    assert [axis.get_title() for axis in axes] == ["loss", "mean squared error", "RankMe"]
    curves = [(line.get_label(), list(line.get_xydata()[-1])) for line in axes[0].get_lines()]
    assert curves == [("training", [3.0, 2 / 3]), ("valid", [3.0, 0.5])]
    assert [line.get_label() for line in axes[2].get_lines()] == ["health"]


def test_short_epochs_are_a_curve_of_their_means() -> None:
    """Small data rarely has a line within an epoch."""
    lines = [{"kind": "train", "num_updates": 5 * n, "loss": 3 / n} for n in (1, 2, 3)]
    lines += [{"kind": "train_inner", "num_updates": 10, "loss": 9.0}]
    (axis,) = curves_figure(lines).axes
    (curve,) = axis.get_lines()
    assert curve.get_label() == "training"
    assert [list(point) for point in curve.get_xydata()] == [[5, 3], [10, 1.5], [15, 1]]


def test_a_single_point_is_visible() -> None:
    (axis,) = curves_figure([{"kind": "train_inner", "num_updates": 10, "loss": 1.0}]).axes
    (curve,) = axis.get_lines()
    assert curve.get_marker() == "o"


def test_curves_of_a_run_are_written_if_it_logged_any(tmp_path: Path) -> None:
    assert write_curves(tmp_path, tmp_path) is None
    assert write_curves(tmp_path / "no" / "model.pt", tmp_path) is None
    log = MetricsLog(tmp_path / METRICS_FILE, 0)
    log.write("train_inner", 1, {"loss": 1.5, "accuracy": 0.5})
    path = write_curves(tmp_path, tmp_path)
    assert path is not None
    height, width = matplotlib.image.imread(path).shape[:2]
    assert width > 1.9 * height
