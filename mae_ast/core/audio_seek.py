"""Read a part of a file with FFmpeg, by seeking before it where its container can.

Decoders do not converge to the bit after a seek: AAC and AC-3 fill bands with noise that depends on
all that was decoded before, Opus predicts from frame to frame. So a long file is decoded in
segments of 30 s, whichever part of it is asked for: each is opened anew, sought with a second of
pre-roll, and cut by timestamps. A part and the whole are made of the same segments, hence equal,
and a part costs what its own length costs. The first segment, and so any file of up to 30 s, is
what FFmpeg decodes from the start.

Only some containers have timestamps to rely on; other files are decoded from the start, in blocks.
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

from mae_ast.core.audio_av import Clock, Frame, Located, Stream, cut, locate, opened
from mae_ast.core.audio_file import AudioFile, UndecodableError
from mae_ast.core.audio_flac import flac_is_joined
from mae_ast.core.downmix import Downmix

SEGMENT_S = 30  # seconds that are decoded in one go
PREROLL_S = 1  # seconds that a decoder sees before what is kept

# FFmpeg's names of containers whose timestamps are exact, or of whole milliseconds.
INDEXED = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "ogg", "flac", "wav")
# What FFmpeg seeks in by reading packets from the start; its decoder converges to the bit.
_CONVERGING = ("mp3",)
_FAR_S = 3  # seconds from which on these are sought in: before, decoding costs less
_FIRST_FRAMES = 6  # that tell how timestamps and positions go together
_MAX_BLOCK = 8_192  # samples of the longest block of Vorbis
_OPUS_UNIT_S, _VORBIS_UNIT = Fraction(1, 400), 64  # shortest frames: 2.5 ms, 64 samples


@dataclass(frozen=True)
class Opened:
    """A stream of which the first frames were decoded.

    Args:
        stream: the stream.
        frames: all its frames, from the first on.
        rate: their sample rate, in Hz.
        clock: positions by timestamps; ``None``: they cannot be relied on.
        length: samples that there are, where a decoder gives the padding of its last block too.
    """

    stream: Stream
    frames: Iterator[Frame]
    rate: int
    clock: Clock | None
    length: int | None

    def located(self, at: int = 0, keep_from: int = 0) -> Iterator[Located]:
        """Yield its frames, the first of which begins ``at``, without padding."""
        located = locate(self.frames, self.rate, self.clock, at, keep_from)
        return located if self.length is None else _without_padding(located, self.length)


@contextmanager
def started(file: AudioFile) -> Iterator[Opened]:
    """Open a file with FFmpeg and decode its first frames.

    Raises:
        AudioError: it has no audio stream.
        UndecodableError, av.FFmpegError: FFmpeg cannot read it.
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
            raise UndecodableError("no frame of it can be decoded")
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
    # Rounded timestamps tell the place of a frame if frames are longer than what is rounded off.
    if len(sizes) != 1 or min(sizes) < stream.time_base * rate:
        return None
    return replace(clock, grid=sizes.pop(), grid_origin=first[0].samples)


def _without_padding(located: Iterator[Located], length: int) -> Iterator[Located]:
    """Cut what a last block has beyond the length; more than that is no padding, but kept."""
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
        current: a file that was just opened; it is used up.
        first: sample to begin with.
        end: the first one that is not wanted; ``None``: all to the end. Fewer come where the file
            ends earlier.

    Raises:
        AudioError: more than half of the packets are damaged.
        av.FFmpegError: it cannot be decoded.
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
    """Decode from ``begin`` on, and yield ``first`` to ``end``."""
    located = current.located(0, first) if begin == 0 else _sought(current, begin, first)
    if located is not None:
        yield from _decoded(current.stream, located, first, end)
        return
    current.stream.container.close()
    with started(current.stream.file) as again:
        yield from _decoded(again.stream, again.located(0, first), first, end)


def _sought(current: Opened, begin: int, keep_from: int = 0) -> Iterator[Located] | None:
    """Seek before a sample, and yield frames from there; ``None`` where the container cannot."""
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
    """Return the position, in samples, at which decoding ends; ``None``: seeking is not possible.

    Args:
        current: a file that was just opened; it is used up.
        seconds: where decoding begins.
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
