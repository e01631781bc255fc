"""Pictures: spectrograms before and after, and the course of a training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mae_ast.core.frontend.fbank import FRAME_SHIFT, NUM_MEL_BINS
from mae_ast.core.inference.reconstruct import Reconstruction
from mae_ast.core.io.audio import SAMPLE_RATE

FRAMES_PER_S = SAMPLE_RATE / FRAME_SHIFT
HIDDEN_COLOUR = "0.75"


def reconstruction_figure(pictures: Reconstruction, titles: Sequence[str] = ()) -> Figure:
    """A row for each clip: original, what the encoder sees, rebuilt.

    Args:
        pictures: (B, T, 128) each.
        titles: one for each clip.
    """
    columns = {
        "original": pictures.original,
        "what the encoder sees": pictures.visible,
        "rebuilt": pictures.rebuilt,
    }
    num_clips, num_frames, _ = pictures.original.shape
    figure = Figure(figsize=(12, 0.6 + 2.1 * num_clips), layout="constrained")
    axes = figure.subplots(num_clips, 3, sharex=True, sharey=True, squeeze=False)
    for row in range(num_clips):
        low, high = np.quantile(pictures.original[row].float().cpu().numpy(), [0.01, 0.995])
        for axis, (name, values) in zip(axes[row], columns.items(), strict=True):
            axis.set_facecolor(HIDDEN_COLOUR)
            axis.imshow(
                values[row].float().cpu().numpy().T,
                origin="lower",
                aspect="auto",
                cmap="magma",
                vmin=low,
                vmax=high,
                interpolation="nearest",
                extent=(0, num_frames / FRAMES_PER_S, 0, NUM_MEL_BINS),
            )
            if row == 0:
                axis.set_title(name)
            if row == num_clips - 1:
                axis.set_xlabel("time (s)")
        axes[row][0].set_ylabel(f"{titles[row]}\nmel bin" if row < len(titles) else "mel bin")
    return figure


def loss_figure(history: Sequence[Mapping[str, Any]]) -> Figure:
    """The course of a training, from the values that the trainer logs.

    Args:
        history: one mapping a logged line: ``kind`` (train_inner or valid) and the values, those
            of validation with ``valid_`` before their names.
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


def to_array(figure: Figure) -> np.ndarray:
    """(height, width, 3) uint8."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()
