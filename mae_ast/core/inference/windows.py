"""Parts of recordings, in columns of patches (time steps), and a model's hidden states of them.

Windows lie on the grid of the patches: a column is cut out of the same frames in a window as in the
whole recording, also where neighbouring patches overlap.
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
    """A part of a recording, in columns of patches.

    Args:
        start, end: what the model sees.
        keep_from, keep_to: what is kept of it.
    """

    start: int
    end: int
    keep_from: int
    keep_to: int


@dataclass(frozen=True)
class Part:
    """A window of one of several recordings.

    Args:
        clip: which one, counted from 0.
        window: of it.
    """

    clip: int
    window: Window


def windows(num_columns: int, length: int, overlap: int) -> list[Window]:
    """Windows of ``length`` that cover all columns, each column being kept once.

    Neighbours share ``overlap`` columns or, before the last one, more; half of it is each one's.
    """
    if num_columns <= length:
        return [Window(0, num_columns, 0, num_columns)]
    starts = [*range(0, num_columns - length, length - overlap), num_columns - length]
    cuts = [(one + length + other) // 2 for one, other in pairwise(starts)]
    return [
        Window(start, start + length, begin, end)
        for start, begin, end in zip(starts, [0, *cuts], [*cuts, num_columns], strict=True)
    ]


def window_columns(model: Encoder, window_s: float, overlap_s: float) -> tuple[int, int]:
    """Length and overlap of windows in columns of patches.

    A model that cuts or fills up its input to ``input_frames`` gets windows of at most so many
    frames, lest some are cut off unseen; they share as great a part as was asked for.

    Raises:
        ValueError: a window is shorter than one patch, or not longer than what it shares.
    """
    shape, input_frames = model.patch_shape, model.config.input_frames
    length, _ = shape.grid(num_frames(round(window_s * SAMPLE_RATE)))
    overlap = round(overlap_s * SAMPLE_RATE / (FRAME_SHIFT * shape.time_stride))
    if length < 1 or not 0 <= overlap < length:
        raise ValueError(
            f"windows of {window_s:g} s that share {overlap_s:g} s; a window holds at least one "
            "patch, and is longer than what it shares with the next"
        )
    most = length if input_frames is None else min(length, shape.grid(input_frames)[0])
    return most, overlap * most // length


def states_of_parts(model: Encoder, clips: Sequence[Tensor], parts: Sequence[Part]) -> list[Tensor]:
    """Compute the hidden states of parts of clips in one batch, with gradients.

    Args:
        model, clips, parts: as in :func:`cut_parts`.

    Returns:
        Per layer (P, N, D). A part's own tokens come first and equal those of that part alone;
        tokens past them are meaningless.
    """
    return model.hidden_states(*cut_parts(model, clips, parts))


def cut_parts(
    model: Encoder, clips: Sequence[Tensor], parts: Sequence[Part]
) -> tuple[Tensor, Tensor | None]:
    """Cut parts out of clips, as one batch on the model's device.

    Args:
        model: on any device, to which the samples are brought.
        clips: each (L,) int16 or float at 16 kHz.
        parts: P parts, each of at least one time step.

    Returns:
        (P, L') float32, zero-padded, and (P,) int64, samples of each part, or ``None`` where the
        model needs no lengths.
    """
    shape = model.patch_shape
    step = FRAME_SHIFT * shape.time_stride
    cut = []
    for part in parts:
        start, end = part.window.start, part.window.end
        # All before the next patch is whole: models that fill up their input see it.
        until = num_samples_of_frames(shape.num_frames_of(end - start + 1)) - 1
        samples = clips[part.clip][start * step : start * step + until]
        cut.append(samples.float() / 32768 if samples.dtype == torch.int16 else samples)
    lengths = torch.tensor([len(samples) for samples in cut])
    columns, _ = shape.grid(num_frames_of(lengths))
    device = model.batch_norm.running_mean.device
    source = pad_sequence(cut, batch_first=True).to(device)
    # Attention is faster without a mask.
    is_padded = model.config.input_frames is not None or bool((columns < columns.max()).any())
    return source, lengths.to(device) if is_padded else None
