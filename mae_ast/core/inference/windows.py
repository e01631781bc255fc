"""Split recordings into windows, and compute the hidden states of the windows in batches.

Windows are measured in columns of patches (time steps) and aligned to the patch grid: a column
covers the same frames in a window as in the whole recording, even if patches overlap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mae_ast.core.frontend.fbank import (
    FRAME_SHIFT,
    num_frames,
    num_frames_of,
    num_samples_of_frames,
)
from mae_ast.core.io.audio import SAMPLE_RATE
from mae_ast.core.models.encoder import Encoder


@dataclass(frozen=True)
class Window:
    """A window of a recording, in columns of patches.

    Args:
        start, end: columns given to the model.
        keep_from, keep_to: columns whose outputs are kept.
    """

    start: int
    end: int
    keep_from: int
    keep_to: int


@dataclass(frozen=True)
class Part:
    """A window of one of several recordings.

    Args:
        clip: index of the recording.
        window: the window.
    """

    clip: int
    window: Window


def windows(num_columns: int, length: int, overlap: int) -> list[Window]:
    """Return windows of ``length`` columns that cover a recording; each column is kept once.

    Adjacent windows overlap by ``overlap`` columns, the last two by more if necessary; each keeps
    half of the overlap.
    """
    if num_columns <= length:
        return [Window(0, num_columns, 0, num_columns)]
    starts = [*range(0, num_columns - length, length - overlap), num_columns - length]
    cuts = [(start + length + following) // 2 for start, following in pairwise(starts)]
    return [
        Window(start, start + length, begin, end)
        for start, begin, end in zip(starts, [0, *cuts], [*cuts, num_columns], strict=True)
    ]


def window_columns(model: Encoder, window_s: float, overlap_s: float) -> tuple[int, int]:
    """Return the length and overlap of windows in columns of patches.

    For a model with ``input_frames``, windows have at most that many frames, since it would cut the
    rest; the overlap is reduced in proportion.

    Raises:
        ValueError: a window is shorter than one patch, or not longer than the overlap.
    """
    shape, input_frames = model.patch_shape, model.config.input_frames
    length, _ = shape.grid(num_frames(round(window_s * SAMPLE_RATE)))
    overlap = round(overlap_s * SAMPLE_RATE / (FRAME_SHIFT * shape.time_stride))
    if length < 1 or not 0 <= overlap < length:
        raise ValueError(
            f"windows of {window_s:g} s with an overlap of {overlap_s:g} s; a window must hold at "
            "least one patch and be longer than the overlap"
        )
    max_length = length if input_frames is None else min(length, shape.grid(input_frames)[0])
    return max_length, overlap * max_length // length


def states_of_parts(
    model: Encoder,
    clips: Sequence[Tensor],
    parts: Sequence[Part],
    num_layers: int | None = None,
) -> list[Tensor]:
    """Compute the hidden states of parts of clips in one batch, with gradients.

    Args:
        model, clips, parts: as in :func:`cut_parts`.
        num_layers: number of layers to compute, from the first one; ``None``: all.

    Returns:
        Per layer (P, N, D). The tokens of a part come first and equal those computed for it alone;
        the rest is padding with undefined values.
    """
    return model.hidden_states(*cut_parts(model, clips, parts), num_layers)


def cut_parts(
    model: Encoder, clips: Sequence[Tensor], parts: Sequence[Part]
) -> tuple[Tensor, Tensor | None]:
    """Cut parts out of clips, as one batch on the model's device.

    Args:
        model: on any device; the samples are moved to it.
        clips: each (L,) int16 or float at 16 kHz.
        parts: P parts, each of at least one time step.

    Returns:
        (P, L') float32, zero-padded, and (P,) int64, samples of each part, or ``None`` if the
        model needs no lengths.
    """
    shape = model.patch_shape
    step = FRAME_SHIFT * shape.time_stride
    waves = []
    for part in parts:
        start, end = part.window.start, part.window.end
        # All samples before the next patch would be complete: models that pad their input see them.
        until = num_samples_of_frames(shape.num_frames_of(end - start + 1)) - 1
        samples = clips[part.clip][start * step : start * step + until]
        waves.append(samples.float() / 32768 if samples.dtype == torch.int16 else samples)
    lengths = torch.tensor([len(samples) for samples in waves])
    columns, _ = shape.grid(num_frames_of(lengths))
    device = model.batch_norm.running_mean.device
    source = pad_sequence(waves, batch_first=True).to(device)
    # Attention is faster without a mask.
    is_padded = model.config.input_frames is not None or bool((columns < columns.max()).any())
    return source, lengths.to(device) if is_padded else None
