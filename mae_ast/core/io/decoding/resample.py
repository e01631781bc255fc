"""Resample mono audio to 16 kHz int16, at once or block by block.

Resampling a part of a file gives exactly the same part of the resampled file: parts are read with
the margin that the filter needs (:class:`Part`), and blocks overlap by this margin.
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
# The size of torchaudio's kernel is the product of the ratio's two terms, which is gigabytes at
# 22,254 Hz. FFmpeg resamples such rates instead.
_MAX_KERNEL = 1_000_000
_FFMPEG_PADDING = 256  # frames
_BLOCK = 2**21  # frames resampled at a time


def to_pcm16(waveform: Tensor) -> Tensor:
    """Convert (..., L) float in [-1, 1] to int16, rounded to nearest and clipped."""
    return (waveform * 32768.0).round_().clamp_(-32768, 32767).to(torch.int16)


@dataclass(frozen=True)
class Part:
    """Range of source frames needed for a part at 16 kHz, including the filter's margin.

    Args:
        first_frame: first frame at the source rate; a multiple of the resampling step.
        end_frame: frame after the last needed one; ``None``: to the end.
        first_sample: exact position of ``first_frame`` at 16 kHz.
        start: first sample of the part, at 16 kHz.
        num_samples: length of the part at 16 kHz; ``None``: to the end.
    """

    first_frame: int
    end_frame: int | None
    first_sample: int
    start: int
    num_samples: int | None

    @classmethod
    def of(cls, rate: int, start: int, num_samples: int | None) -> Part:
        """Return the range of frames at ``rate`` Hz needed for the samples from ``start`` on."""
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
        """Convert the part's frames to int16 blocks at 16 kHz, ``num_samples`` in total.

        Args:
            blocks: mono blocks, int16 or float32; fewer frames if the file ends earlier.
            rate: sample rate of the blocks, in Hz.
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
    """Return the number of frames on each side that a sample depends on, plus one step."""
    lower_rate = min(rate, SAMPLE_RATE) * _FILTER_ROLLOFF
    return math.ceil(_FILTER_ZERO_CROSSINGS * rate / lower_rate) + _steps(rate)[0]


def _resampled(blocks: Iterable[Tensor], rate: int) -> Iterator[Tensor]:
    """Resample in blocks that overlap by the filter's margin, in constant memory."""
    source_step, target_step = _steps(rate)
    # A whole number of steps, so that samples of a block are aligned with those of the whole file.
    margin = -(-_margin(rate) // source_step)
    kept: list[Tensor] = []  # frames from step `done - margin` on (or from the first)
    held, before = 0, 0  # frames in `kept`, and the number of their steps already resampled
    for block in blocks:
        kept.append(block.float() / 32768 if block.dtype == torch.int16 else block)
        held += len(block)
        if held < _BLOCK:
            continue
        frames = torch.cat(kept)
        steps = held // source_step - margin  # these do not depend on later frames
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
    # FFmpeg may return one sample too few.
    padded = F.pad(samples, (0, _FFMPEG_PADDING))
    frame = av.AudioFrame.from_ndarray(padded.numpy()[None], format="fltp", layout="mono")
    frame.sample_rate = rate
    resampler = av.AudioResampler(format="fltp", layout="mono", rate=SAMPLE_RATE)
    blocks = [*resampler.resample(frame), *resampler.resample(None)]
    output = torch.from_numpy(np.concatenate([block.to_ndarray()[0] for block in blocks]))
    return output[: -(-len(samples) * SAMPLE_RATE // rate)]


@lru_cache(maxsize=16)
def _resampler(source_step: int, target_step: int) -> Resample:
    """Return torchaudio's resampler, cached with its kernel (0.6 ms per clip at 44.1 kHz)."""
    return Resample(source_step, target_step, dtype=torch.float32)
