"""Read part of a file with FFmpeg, by seeking if the container allows it.

Decoders do not converge bit-exactly after a seek: AAC and AC-3 fill bands with noise that depends
on everything decoded before, and Opus predicts from frame to frame. Therefore a long file is always
decoded in segments of 30 s: the file is reopened for each, sought with one second of pre-roll, and
cut by timestamps. A part and the whole file consist of the same segments, so they are equal, and
the cost of a part depends only on its length. The first segment, and so any file of up to 30 s, is
decoded from the start of the file.

Only some containers have reliable timestamps; other files are decoded from the start, in blocks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import chain, islice

import av
from torch import Tensor

from mae_ast.core.io.decoding.audio_file import AudioFile, UndecodableError
from mae_ast.core.io.decoding.downmix import Downmix
from mae_ast.core.io.decoding.ffmpeg import Clock, Frame, Located, Stream, cut, locate, opened
from mae_ast.core.io.decoding.flac import flac_is_joined

SEGMENT_S = 30  # seconds decoded at a time
PREROLL_S = 1  # seconds decoded and discarded after a seek

# FFmpeg's names of containers whose timestamps are exact or rounded to milliseconds.
INDEXED = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "ogg", "flac", "wav")
# FFmpeg seeks in these by reading packets from the start; their decoder converges bit-exactly.
_CONVERGING = ("mp3",)
_FAR_S = 3  # seconds; closer to the start, decoding these is cheaper than seeking
_FIRST_FRAMES = 6  # frames used to relate timestamps to positions
_MAX_BLOCK = 8_192  # samples of the longest Vorbis block
_OPUS_UNIT_S, _VORBIS_UNIT = Fraction(1, 400), 64  # shortest frames: 2.5 ms, 64 samples


@dataclass(frozen=True)
class Opened:
    """An open stream whose first frames have been decoded.

    Args:
        stream: the open stream.
        frames: all its frames, including the first ones.
        rate: sample rate of the frames, in Hz.
        clock: converts timestamps to positions; ``None`` if timestamps are unreliable.
        length: number of samples, for decoders that also return the padding of the last block.
    """

    stream: Stream
    frames: Iterator[Frame]
    rate: int
    clock: Clock | None
    length: int | None

    def located(self, at: int = 0, keep_from: int = 0) -> Iterator[Located]:
        """Yield its frames without padding; ``at`` is the position of the first one."""
        located = locate(self.frames, self.rate, self.clock, at, keep_from)
        return located if self.length is None else _without_padding(located, self.length)


@contextmanager
def started(file: AudioFile) -> Iterator[Opened]:
    """Open a file with FFmpeg and decode its first frames.

    Raises:
        AudioError: the file has no audio stream.
        UndecodableError, av.FFmpegError: FFmpeg cannot read the file.
    """
    with opened(file) as stream:
        length = None
        is_vorbis = stream.audio.codec_context.name in ("vorbis", "libvorbis")
        if is_vorbis and stream.container.format.name == "ogg":
            stream.keep_padding()
            length = stream.audio.duration
        frames = stream.frames()
        first = list(islice(frames, _FIRST_FRAMES))
        if not first:
            stream.check()
            raise UndecodableError("no frame can be decoded")
        clock = _clock(stream, [frame for frame, _ in first])
        rate = first[0][0].sample_rate
        yield Opened(stream, chain(first, frames), rate, clock, length)


def _clock(stream: Stream, first: list[av.AudioFrame]) -> Clock | None:
    name, rate = stream.container.format.name, first[0].sample_rate
    if name not in INDEXED + _CONVERGING or first[0].pts is None or not stream.time_base:
        return None
    if name == "flac" and flac_is_joined(stream.file):
        return None
    clock = Clock(rate, stream.time_base, first[0].pts)
    if stream.time_base * rate <= 1:
        late = clock.begin_of(first) or 0
        return replace(clock, origin=clock.origin + round(late / (stream.time_base * rate)))
    sizes = {frame.samples for frame in first[1:]}
    codec = stream.audio.codec_context.name
    if "opus" in codec:
        sizes = {round(_OPUS_UNIT_S * rate)}
    elif "vorbis" in codec:
        sizes = {_VORBIS_UNIT}
    # Rounded timestamps identify a frame only if frames are longer than the rounding.
    if len(sizes) != 1 or min(sizes) < stream.time_base * rate:
        return None
    return replace(clock, grid=sizes.pop(), grid_origin=first[0].samples)


def _without_padding(located: Iterator[Located], length: int) -> Iterator[Located]:
    """Trim the padding of the last block to the length, unless more than padding follows it."""
    held: list[Located] = []
    for place, block in located:
        if place + len(block[0]) <= length:
            yield place, block
        elif place < length + _MAX_BLOCK:
            held.append((place, block))
        else:
            yield from held
            yield place, block
            held = []
    if held and held[0][0] < length:
        place, block = held[0]
        yield place, [channel[: length - place] for channel in block]


def blocks(current: Opened, first: int, end: int | None) -> Iterator[Tensor]:
    """Decode samples ``first`` to ``end``, counted at the file's own rate, to mono float32 blocks.

    Args:
        current: a newly opened file, which is consumed.
        first: first sample.
        end: sample after the last one; ``None`` reads to the end. Fewer are yielded if the file
            ends earlier.

    Raises:
        AudioError: more than half of the packets are damaged.
        av.FFmpegError: the file cannot be decoded.
    """
    stream, rate = current.stream, current.rate
    if current.clock is None:
        yield from _decoded(stream, current.located(0, first), first, end)
        return
    size = SEGMENT_S * rate
    if stream.container.format.name in _CONVERGING:
        is_far = first >= _FAR_S * rate
        yield from _segment(current, first if is_far else 0, first, end)
        return
    with ExitStack() as stack:
        while True:
            begin = first // size * size
            until = begin + size if end is None else min(end, begin + size)
            got = 0
            for block in _segment(current, begin, first, until):
                got += len(block)
                yield block
            if until == end or first + got < until:
                return
            first = until
            stack.close()
            stream.container.close()
            current = stack.enter_context(started(stream.file))


def _segment(current: Opened, begin: int, first: int, end: int | None) -> Iterator[Tensor]:
    """Decode from ``begin`` on, and yield the samples ``first`` to ``end``."""
    located = current.located(0, first) if begin == 0 else _sought(current, begin, first)
    if located is not None:
        yield from _decoded(current.stream, located, first, end)
        return
    current.stream.container.close()
    with started(current.stream.file) as again:
        yield from _decoded(again.stream, again.located(0, first), first, end)


def _sought(current: Opened, begin: int, keep_from: int = 0) -> Iterator[Located] | None:
    """Seek to before a sample and return the frames from there; ``None`` if seeking fails."""
    clock, stream = current.clock, current.stream
    assert clock is not None
    target = (Fraction(begin, current.rate) - PREROLL_S) / clock.time_base
    try:
        stream.container.seek(clock.origin + math.floor(target), stream=stream.audio)
        frames = stream.frames()
        first = list(islice(frames, _FIRST_FRAMES))
    except av.FFmpegError:
        return None
    at = clock.begin_of([frame for frame, _ in first])
    if at is None or at > begin:
        return None
    return replace(current, frames=chain(first, frames)).located(at, keep_from)


def _decoded(
    stream: Stream, located: Iterator[Located], first: int, end: int | None
) -> Iterator[Tensor]:
    mono = Downmix(stream.file.path)
    yield from cut(located, first, end, mono)
    mono.check()
    stream.check()


def end_after(current: Opened, seconds: Fraction) -> int | None:
    """Return the position, in samples, at which decoding ends; ``None`` if seeking is impossible.

    Args:
        current: a newly opened file, which is consumed.
        seconds: time at which decoding begins.
    """
    if current.clock is None:
        return None
    begin = max(0, math.floor(seconds * current.rate))
    located = _sought(current, begin) if begin > 0 else current.located()
    if located is None:
        return None
    end = 0
    for place, block in located:
        end = place + len(block[0])
    return end
