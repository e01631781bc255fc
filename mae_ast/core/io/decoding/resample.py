"""Resample mono audio to 16 kHz int16, whole or block by block.

Resampling a part gives exactly that part of the resampled file: parts are read with the margin that
the filter needs (:class:`Part`), and blocks overlap by it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import av
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchaudio.transforms import Resample

SAMPLE_RATE = 16_000  # Hz, of all decoded audio

# torchaudio's resampling filter spans 6 zero crossings of the lower rate, rolled off at 0.99.
_FILTER_ZERO_CROSSINGS = 6
_FILTER_ROLLOFF = 0.99
# The size of torchaudio's kernel is the product of the ratio's two terms; at 22,254 Hz that is
# gigabytes. FFmpeg resamples such rates instead.
_MAX_KERNEL = 1_000_000
_FFMPEG_PADDING = 256  # frames
_BLOCK = 2**21  # frames that are resampled at a time


def to_pcm16(waveform: Tensor) -> Tensor:
    """Convert (..., L) float in [-1, 1] to int16, rounded to nearest and clipped."""
    return (waveform * 32768.0).round_().clamp_(-32768, 32767).to(torch.int16)


@dataclass(frozen=True)
class Part:
    """Frames of the source that a part at 16 kHz is made of, with the filter's margin.

    Args:
        first_frame: at the source's rate; a multiple of the resampling ratio's denominator.
        end_frame: the first one that is not needed; ``None``: all to the end.
        first_sample: the place of ``first_frame`` at 16 kHz, exactly.
        start: first sample that is wanted, at 16 kHz.
        num_samples: samples that are wanted; ``None``: all to the end.
    """

    first_frame: int
    end_frame: int | None
    first_sample: int
    start: int
    num_samples: int | None

    @classmethod
    def of(cls, rate: int, start: int, num_samples: int | None) -> Part:
        """Return the frames at ``rate`` Hz that samples from ``start`` on are made of."""
        if rate == SAMPLE_RATE:
            end = None if num_samples is None else start + num_samples
            return cls(start, end, start, start, num_samples)
        source_step, target_step = _steps(rate)
        margin = _margin(rate)
        step = max(0, (start * source_step // target_step - margin) // source_step)
        end_frame = None
        if num_samples is not None:
            end_frame = math.ceil((start + num_samples) * source_step / target_step) + margin
        return cls(step * source_step, end_frame, step * target_step, start, num_samples)

    def finish(self, blocks: Iterable[Tensor], rate: int) -> Iterator[Tensor]:
        """Make blocks of int16 at 16 kHz, together num_samples, of the part's frames.

        Args:
            blocks: mono, int16 or float32; fewer frames where the file ends earlier.
            rate: of the blocks, in Hz.
        """
        skip, left = self.start - self.first_sample, self.num_samples
        for block in blocks if rate == SAMPLE_RATE else _resampled(blocks, rate):
            samples = block[skip:] if left is None else block[skip : skip + left]
            skip = max(0, skip - len(block))
            left = None if left is None else left - len(samples)
            if len(samples):
                yield samples if samples.dtype == torch.int16 else to_pcm16(samples)


def _steps(rate: int) -> tuple[int, int]:
    common = math.gcd(rate, SAMPLE_RATE)
    return rate // common, SAMPLE_RATE // common


def _margin(rate: int) -> int:
    """Frames before and after a sample that it depends on, and one step of the ratio."""
    lower_rate = min(rate, SAMPLE_RATE) * _FILTER_ROLLOFF
    return math.ceil(_FILTER_ZERO_CROSSINGS * rate / lower_rate) + _steps(rate)[0]


def _resampled(blocks: Iterable[Tensor], rate: int) -> Iterator[Tensor]:
    """Resample in blocks that overlap by the filter's margin, in constant memory."""
    source_step, target_step = _steps(rate)
    # Whole steps, so that a block's samples lie where those of the whole do.
    margin = -(-_margin(rate) // source_step)
    kept: list[Tensor] = []  # frames from step `done - margin` on (or from the first)
    held, before = 0, 0  # frames in `kept`; steps of them that were resampled before
    for block in blocks:
        kept.append(block.float() / 32768 if block.dtype == torch.int16 else block)
        held += len(block)
        if held < _BLOCK:
            continue
        frames = torch.cat(kept)
        steps = held // source_step - margin  # up to here no later frame matters
        if steps > before:
            yield resample_to_16k(frames, rate)[before * target_step : steps * target_step]
            keep_from = max(0, steps - margin)
            frames, before = frames[keep_from * source_step :].clone(), steps - keep_from
        kept, held = [frames], len(frames)
    if held:
        yield resample_to_16k(torch.cat(kept), rate)[before * target_step :]


def resample_to_16k(samples: Tensor, rate: int) -> Tensor:
    """Resample (frames,) float32 at ``rate`` Hz to 16 kHz."""
    if math.prod(_steps(rate)) <= _MAX_KERNEL:
        resampled: Tensor = _resampler(*_steps(rate))(samples)
        return resampled
    # FFmpeg may give a sample less than there should be.
    padded = F.pad(samples, (0, _FFMPEG_PADDING))
    frame = av.AudioFrame.from_ndarray(padded.numpy()[None], format="fltp", layout="mono")
    frame.sample_rate = rate
    resampler = av.AudioResampler(format="fltp", layout="mono", rate=SAMPLE_RATE)
    blocks = [*resampler.resample(frame), *resampler.resample(None)]
    made = torch.from_numpy(np.concatenate([block.to_ndarray()[0] for block in blocks]))
    return made[: -(-len(samples) * SAMPLE_RATE // rate)]


@lru_cache(maxsize=16)
def _resampler(source_step: int, target_step: int) -> Resample:
    """Return torchaudio's resampler, cached with its kernel (0.6 ms per clip at 44.1 kHz)."""
    return Resample(source_step, target_step, dtype=torch.float32)
