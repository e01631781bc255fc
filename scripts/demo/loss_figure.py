"""Plot of training curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure


def loss_figure(history: Sequence[Mapping[str, Any]]) -> Figure:
    """Plot training curves from the values that the trainer logs.

    Args:
        history: one mapping per logged line, with ``kind`` (train_inner or valid) and the values;
            the names of validation values start with ``valid_``.
    """
    panels = {
        "loss": "total loss",
        "mse": "mean squared error",
        "info_nce": "InfoNCE (nats)",
        "info_nce_accuracy": "InfoNCE accuracy",
    }
    figure = Figure(figsize=(12, 3.2), layout="constrained")
    axes = figure.subplots(1, len(panels))
    kinds = {"train_inner": ("", "training", "-"), "valid": ("valid_", "validation", "o-")}
    for axis, (name, title) in zip(axes, panels.items(), strict=True):
        for kind, (prefix, label, style) in kinds.items():
            lines = [line for line in history if line["kind"] == kind and prefix + name in line]
            updates = [int(line[f"{prefix}num_updates"]) for line in lines]
            axis.plot(updates, [float(line[prefix + name]) for line in lines], style, label=label)
        axis.set_title(title)
        axis.set_xlabel("updates")
        axis.grid(alpha=0.3)
    axes[0].legend()
    return figure
