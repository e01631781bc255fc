"""Plots of reconstructed spectrograms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mae_ast.core.frontend.fbank import FRAME_SHIFT, NUM_MEL_BINS
from mae_ast.core.inference.reconstruct import Reconstruction
from mae_ast.core.io.audio import SAMPLE_RATE

FRAMES_PER_S = SAMPLE_RATE / FRAME_SHIFT
MASKED_COLOR = "0.75"


def reconstruction_figure(spectrograms: Reconstruction, titles: Sequence[str] = ()) -> Figure:
    """Plot one row per clip: original, visible patches, reconstruction.

    Args:
        spectrograms: those of B clips, (B, T, 128) each.
        titles: one title per clip.
    """
    columns = {
        "original": spectrograms.original,
        "visible patches": spectrograms.visible,
        "reconstruction": spectrograms.rebuilt,
    }
    num_clips, num_frames, _ = spectrograms.original.shape
    figure = Figure(figsize=(12, 0.6 + 2.1 * num_clips), layout="constrained")
    axes = figure.subplots(num_clips, 3, sharex=True, sharey=True, squeeze=False)
    for row in range(num_clips):
        low, high = np.quantile(spectrograms.original[row].float().cpu().numpy(), [0.01, 0.995])
        for axis, (name, values) in zip(axes[row], columns.items(), strict=True):
            axis.set_facecolor(MASKED_COLOR)
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
        label = f"{titles[row]}\nmel bin" if row < len(titles) else "mel bin"
        axes[row][0].set_ylabel(label, parse_math=False)
    return figure


def to_array(figure: Figure) -> np.ndarray:
    """Render a figure as RGB, (height, width, 3) uint8."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels: np.ndarray = np.asarray(canvas.buffer_rgba())[:, :, :3].copy()
    return pixels
