"""Compute logits of clips of any length from a classifier with a limited input length.

    clips (B, L) -> windows (W, L') -> logits (W, C) -> logits of the mean probability (B, C)

A clip's windows do not overlap, except that the last one ends with the clip. C: number of classes,
W: number of windows.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mae_ast.core.frontend.fbank import FRAME_SHIFT, num_frames
from mae_ast.core.inference.windows import Part, cut_parts, window_columns, windows
from mae_ast.core.io.audio import SAMPLE_RATE
from mae_ast.core.models.classifier import Classifier
from mae_ast.core.models.encoder import Encoder

LONGEST_S = 30.0  # window of a model without input_frames, unless trained on longer clips
BATCH_SAMPLES = 160 * SAMPLE_RATE  # per forward pass; at least as many windows as clips


def clip_logits(
    model: Classifier,
    source: Tensor,
    lengths: Tensor | None = None,
    independent: bool = False,
    trained_samples: int = 0,
) -> Tensor:
    """Return the logits (B, C) float32 of whole clips of any length, for evaluation.

    A clip longer than the encoder's maximum input is scored in windows, and its probabilities are
    averaged over them.

    Args:
        model: the classifier, in eval mode.
        source: (B, L) int16 or float waveforms at 16 kHz.
        lengths: (B,) int64, valid samples of each clip, at least one patch; default: all.
        independent: probabilities are sigmoids (multi-label), else a softmax over all classes.
        trained_samples: longest clips seen in training; 0: unknown.
    """
    num_clips, longest = source.shape
    encoder = model.encoder
    if len(clip_windows(encoder, [longest], trained_samples)) < 2:
        logits: Tensor = model(source, lengths)
        return logits
    sizes = [longest] * num_clips if lengths is None else lengths.tolist()
    waves = [row[:size] for row, size in zip(source, sizes, strict=True)]
    parts = clip_windows(encoder, sizes, trained_samples)
    columns = max(part.window.end - part.window.start for part in parts)
    step = FRAME_SHIFT * encoder.patch_shape.time_stride
    batch_size = max(num_clips, BATCH_SAMPLES // (columns * step))
    logits = torch.cat(
        [
            model(*cut_parts(encoder, waves, parts[begin : begin + batch_size]))
            for begin in range(0, len(parts), batch_size)
        ]
    )
    clips = torch.tensor([part.clip for part in parts], device=logits.device)
    return mean_logits(logits, clips, num_clips, independent)


def clip_windows(encoder: Encoder, num_samples: list[int], trained_samples: int = 0) -> list[Part]:
    """Split clips into windows of at most the encoder's maximum input.

    That is ``input_frames`` if set, else the longer of 30 s and ``trained_samples``.

    Args:
        encoder: of any system.
        num_samples: length of each clip at 16 kHz, at least one patch.
        trained_samples: longest clips seen in training, at 16 kHz; 0: unknown.

    Returns:
        Windows of the first clip, then of the second, and so on.
    """
    shape, length = encoder.patch_shape, longest_window(encoder, trained_samples)
    return [
        Part(clip, window)
        for clip, count in enumerate(num_samples)
        for window in windows(shape.grid(num_frames(count))[0], length, 0)
    ]


def longest_window(encoder: Encoder, trained_samples: int = 0) -> int:
    """Return the length of the windows of :func:`clip_windows`, in columns of patches."""
    longest = max(round(LONGEST_S * SAMPLE_RATE), trained_samples, encoder.patch_shape.min_samples)
    return window_columns(encoder, longest / SAMPLE_RATE, 0.0)[0]


def mean_logits(logits: Tensor, clips: Tensor, num_clips: int, independent: bool) -> Tensor:
    """Return the logits of each clip's mean probability over its windows.

    Args:
        logits: (W, C) float32.
        clips: (W,) int64, the clip that each window belongs to.
        num_clips: B; each clip has at least one window.
        independent: probabilities are sigmoids (multi-label), else a softmax over all classes.

    Returns:
        (B, C), whose sigmoid or softmax is the mean probability.
    """
    if independent:
        positive = _log_mean(F.logsigmoid(logits), clips, num_clips)
        return positive - _log_mean(F.logsigmoid(-logits), clips, num_clips)
    return _log_mean(F.log_softmax(logits, dim=1), clips, num_clips)


def _log_mean(values: Tensor, clips: Tensor, num_clips: int) -> Tensor:
    """Return the logarithm of the mean of exp(values) (W, C) over each clip's windows, (B, C)."""
    index = clips[:, None].expand_as(values)
    empty = values.new_zeros(num_clips, values.shape[1])
    highest = empty.scatter_reduce(0, index, values, "amax", include_self=False)
    total = empty.scatter_add(0, index, (values - highest[clips]).exp())
    count = torch.bincount(clips, minlength=num_clips)[:, None]
    return highest + (total / count).log()
