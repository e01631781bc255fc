"""Read a segment of a file, at 16 kHz: ``read_segment(segment, start, num_samples) -> (L,) int16``.

A segment that begins at sample s of a file at rate r and is n samples long consists of the 16 kHz
samples whose time lies from s / r up to, but not including, (s + n) / r. Adjacent segments
therefore neither overlap nor leave a gap, and a segment from the start of a file has as many
samples as a file of its length.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from torch import Tensor

from mae_ast.core.io.audio import (
    SAMPLE_RATE,
    AudioError,
    num_samples_16k,
    probe_audio,
    read_audio,
)


@dataclass(frozen=True)
class Segment:
    """A file, or a part of one.

    Args:
        path: path of the file, also ``archive:offset:length``.
        start: first sample, at 16 kHz.
        num_samples: number of samples at 16 kHz; ``None``: to the end of the file.
    """

    path: str
    start: int = 0
    num_samples: int | None = None

    @classmethod
    def of(cls, path: str, start: int, length: int, sample_rate: int) -> Segment:
        """Return a segment whose start and length are counted at ``sample_rate`` Hz."""
        first = num_samples_16k(start, sample_rate)
        return cls(path, first, num_samples_16k(start + length, sample_rate) - first)

    def __str__(self) -> str:
        """Return the path, followed by the limits in seconds if it is a part of the file."""
        if self.num_samples is None:
            return self.path
        return f"{self.path} ({_seconds(self.start)} to {_seconds(self.end)} s)"

    @property
    def end(self) -> int:
        """Sample after the last one, at 16 kHz, of a part with a length."""
        assert self.num_samples is not None
        return self.start + self.num_samples


def read_segment(segment: Segment, start: int = 0, num_samples: int | None = None) -> Tensor:
    """Read a segment or a part of it, as :func:`~mae_ast.core.io.audio.read_audio` reads a file.

    Args:
        segment: file, or part of one.
        start: first sample, counted from the start of the segment.
        num_samples: number of samples; ``None`` reads to the end of the segment. Fewer are returned
            if the segment, or what can be decoded of the file, ends earlier.

    Returns:
        (L,) int16 at 16 kHz.

    Raises:
        FileNotFoundError: the file does not exist.
        AudioError: the file cannot be decoded, or ends before the part that is read.
    """
    if segment.num_samples is None:
        return read_audio(segment.path, segment.start + start, num_samples)
    left = max(0, segment.num_samples - start)
    wanted = left if num_samples is None else min(num_samples, left)
    try:
        samples = read_audio(segment.path, segment.start + start, wanted)
    except AudioError:
        check_end(segment)
        raise
    if len(samples) < wanted:
        check_end(segment)
    return samples


def check_end(segment: Segment) -> None:
    """Check that a segment lies within its file, by the length of the file.

    Raises:
        FileNotFoundError: the file does not exist.
        AudioError: the segment reaches beyond the end of the file, or the file cannot be read.
    """
    if segment.num_samples is None:
        return
    info = probe_audio(segment.path)
    length = num_samples_16k(info.num_frames, info.sample_rate)
    if segment.end > length:
        where = "begins after" if segment.start >= length else "reaches beyond"
        raise AudioError(
            f"{os.path.abspath(segment.path)}: the segment from {_seconds(segment.start)} to "
            f"{_seconds(segment.end)} s {where} the end of the file at {_seconds(length)} s "
            f"({info.num_frames} samples at {info.sample_rate} Hz)"
        )


def _seconds(samples: int) -> str:
    return f"{samples / SAMPLE_RATE:.7f}".rstrip("0").rstrip(".")
