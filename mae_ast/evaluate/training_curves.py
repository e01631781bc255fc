"""Plot of a run's training curves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from mae_ast.evaluate.drawing import save_figure
from mae_ast.trainer.metrics_log import read_metrics

CURVES_FILE = "curves.png"
# Metrics in order, with the title of their panel; those that a run has are plotted.
PANELS = {
    "loss": "loss",
    "mse": "mean squared error",
    "info_nce": "InfoNCE (nats)",
    "info_nce_accuracy": "InfoNCE accuracy",
    "accuracy": "accuracy",
    "mAP": "mAP",
    "rank_me": "RankMe",
    "linear_accuracy": "linear probe, accuracy",
    "linear_mAP": "linear probe, mAP",
}
# Means since the last line, and over epochs; of the two, the kind with more lines is plotted.
TRAINING = ("train_inner", "train")
FEW = 30  # points of a training curve that are marked


def curves_figure(lines: Sequence[Mapping[str, Any]]) -> Figure:
    """Plot metrics against updates, a panel for each metric and a curve for each kind of line.

    Args:
        lines: lines of ``metrics.jsonl``, from :func:`mae_ast.trainer.metrics_log.read_metrics`.
    """
    names = [name for name in PANELS if any(line.get(name) is not None for line in lines)]
    counts = Counter(line["kind"] for line in lines)
    training = max(TRAINING, key=lambda kind: counts[kind])
    kinds = [kind for kind in counts if kind == training or kind not in TRAINING]
    figure = Figure(figsize=(3.6 * max(1, len(names)), 3.2), layout="constrained")
    for number, name in enumerate(names, 1):
        axis = figure.add_subplot(1, len(names), number)
        for kind in kinds:
            own = [line for line in lines if line["kind"] == kind and line.get(name) is not None]
            if own:
                axis.plot(
                    [line["num_updates"] for line in own],
                    [line[name] for line in own],
                    "-" if kind == training and len(own) > FEW else "o-",
                    markersize=3,
                    label="training" if kind == training else kind,
                )
        axis.set_title(PANELS[name])
        axis.set_xlabel("updates")
        axis.grid(alpha=0.3)
        axis.legend()
    return figure


def write_curves(run: Path, out: Path) -> Path | None:
    """Write ``curves.png`` of a run.

    Args:
        run: folder of the run, or another source of a model.
        out: output folder.

    Returns:
        The file; ``None`` if there is no ``metrics.jsonl``, as of an exported model.
    """
    path = out / CURVES_FILE
    try:
        lines = read_metrics(run)
    except (FileNotFoundError, NotADirectoryError):
        path.unlink(missing_ok=True)  # of an earlier report
        return None
    save_figure(curves_figure(lines), path)
    return path
