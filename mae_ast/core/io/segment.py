"""Read a segment of a file, at 16 kHz: ``read_segment(segment, start, num_samples) -> (L,) int16``.

A segment that begins at sample s of a file at rate r and is n samples long consists of the 16 kHz
samples whose time lies from s / r up to, but not including, (s + n) / r: the first one is number
ceil(16000 s / r), counted from 0. Adjacent segments therefore neither overlap nor leave a gap, and
a segment from the start of a file has as many samples as a file of its length. What is read equals
the same slice of the whole file (resampled audio: to within one 16-bit step), so at its limits a
resampled segment depends on the audio around it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from mae_ast.core.io.audio import (
    SAMPLE_RATE,
    AudioError,
    num_samples_16k,
    probe_audio,
    read_audio,
    read_header,
    stream_audio,
)
from mae_ast.core.io.remote.urls import is_url

R = TypeVar("R")


class SegmentError(AudioError):
    """A segment reaches beyond the end of its file."""


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
        SegmentError: the part that is read reaches beyond the end of the file.
        AudioError: the file cannot be decoded.
    """
    wanted = num_samples
    if segment.num_samples is not None:
        left = max(0, segment.num_samples - start)
        wanted = left if num_samples is None else min(num_samples, left)
    try:
        samples = read_audio(segment.path, segment.start + start, wanted)
    except AudioError:
        check_end(segment)
        raise
    if wanted is not None and len(samples) < wanted:
        check_end(segment)
    return samples


def stream_segment(segment: Segment, use: Callable[[Iterator[Tensor]], R]) -> R:
    """Read a whole segment like :func:`read_segment`, in blocks and in constant memory.

    Args:
        segment: file, or part of one.
        use: as in :func:`~mae_ast.core.io.audio.stream_audio`.

    Returns:
        The result of ``use``.

    Raises:
        FileNotFoundError, SegmentError, AudioError: see :func:`read_segment`.
    """
    num_samples = 0

    def counted(blocks: Iterator[Tensor]) -> Iterator[Tensor]:
        nonlocal num_samples
        num_samples = 0
        for block in blocks:
            num_samples += len(block)
            yield block

    try:
        result = stream_audio(
            segment.path, lambda blocks: use(counted(blocks)), segment.start, segment.num_samples
        )
    except AudioError:
        check_end(segment)
        raise
    if segment.num_samples is not None and num_samples < segment.num_samples:
        check_end(segment)
    return result


def check_end(segment: Segment) -> None:
    """Check that a segment lies within its file.

    Raises:
        FileNotFoundError: the file does not exist.
        SegmentError: the segment reaches beyond the end of the file.
        AudioError: the file cannot be read.
    """
    if problem := _end_problem(segment):
        path = segment.path if is_url(segment.path) else os.path.abspath(segment.path)
        raise SegmentError(f"{path}: {problem}")


def segment_problem(segment: Segment, sample_rate: int) -> str:
    """Return an error if the file of a segment ends earlier or has another sample rate, else ''.

    Little more than the header is read, unless the segment seems to reach beyond the end. A file
    that cannot be read is no error here; decoding it reports the reason.

    Args:
        segment: part of a file, with a length.
        sample_rate: rate in Hz at which its limits were counted.
    """
    try:
        header = read_header(segment.path)
        if header.sample_rate != sample_rate:
            return (
                f"is sampled at {header.sample_rate} Hz, not {sample_rate}; a segment's start and "
                "length must be counted at the file's own rate"
            )
        is_within = segment.end <= math.ceil(header.seconds * SAMPLE_RATE)
        return "" if is_within or not header.seconds else _end_problem(segment)
    except (AudioError, OSError):
        return ""


def _end_problem(segment: Segment) -> str:
    if segment.num_samples is None:
        return ""
    info = probe_audio(segment.path)
    length = num_samples_16k(info.num_frames, info.sample_rate)
    if segment.end <= length:
        return ""
    place = "begins after" if segment.start >= length else "reaches beyond"
    return (
        f"the segment from {_seconds(segment.start)} to {_seconds(segment.end)} s {place} the end "
        f"of the file at {info.seconds:.7g} s; start + length must be at most {info.num_frames} "
        f"samples at {info.sample_rate} Hz"
    )


def _seconds(samples: int) -> str:
    return f"{samples / SAMPLE_RATE:.7f}".rstrip("0").rstrip(".")
