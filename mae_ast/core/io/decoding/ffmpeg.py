"""Read audio with FFmpeg: open a stream, decode its frames, cut them to mono blocks.

A packet that cannot be decoded is replaced by silence of the same duration, so that later audio
keeps its position.
"""

from __future__ import annotations

import gc
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import av
import numpy as np
import torch
from av.codec.context import Flags2
from av.stream import Disposition
from torch import Tensor

from mae_ast.core.io.decoding.audio_file import HEAD_BYTES, AudioError, AudioFile, warn_once
from mae_ast.core.io.decoding.downmix import Downmix
from mae_ast.core.io.decoding.headers import wav_exceeds_header
from mae_ast.core.io.plural import plural

_LONGEST_GAP_S = 3_600  # seconds; larger gaps between timestamps are treated as damage
_CONTROL = re.compile(rb"[\0-\x08\x0e-\x1f]")  # bytes that do not occur in text
_BATCH = 2**16  # frames averaged over channels at a time
Frame = tuple[av.AudioFrame, Fraction]  # a frame, and the seconds of damage before it
Located = tuple[int, list[np.ndarray]]  # position of a block in the file; (L,) float32 per channel

# FFmpeg resamples with filter graphs, which own threads and are part of reference cycles. A forked
# process does not have these threads, and freeing a graph there waits for them forever (FFmpeg
# 8.1), so the garbage collector of a data worker must not collect inherited objects.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=gc.freeze)


def tag_options(version: str) -> dict[str, Any]:
    """Return the arguments of ``av.open`` that accept tags in any encoding.

    PyAV 19 and later need none.
    """
    return {} if int(version.split(".")[0]) >= 19 else {"metadata_errors": "replace"}


_TAGS = tag_options(av.__version__)


@dataclass
class Stream:
    """The audio stream of an open file, with counts of damaged packets.

    Args:
        file: the open file.
        container, audio: PyAV's container and stream.
        packets, damaged: number of packets so far, and of those that could not be decoded.
        silent: number of runs of damaged packets that are followed by a decoded frame.
    """

    file: AudioFile
    container: av.container.InputContainer
    audio: av.AudioStream
    packets: int = field(default=0, init=False)
    damaged: int = field(default=0, init=False)
    silent: int = field(default=0, init=False)
    _drop_first: bool = field(default=False, init=False)

    @property
    def time_base(self) -> Fraction:
        """Duration of one timestamp tick in seconds; 0 if the stream has no time base."""
        base = self.audio.time_base
        return Fraction(base.numerator, base.denominator) if base else Fraction(0)

    def keep_padding(self) -> None:
        """Decode the last block completely; FFmpeg trims that of short Vorbis files wrongly."""
        self.audio.codec_context.flags2 |= Flags2.skip_manual
        self._drop_first = True

    def demux(self) -> Iterator[av.Packet[av.AudioStream]]:
        """Yield packets up to the end, or until no more can be read."""
        seen = before = 0
        while True:
            try:
                for packet in self.container.demux(self.audio):
                    seen += 1
                    yield packet
                return
            except av.FFmpegError:
                if not seen:
                    raise
                if seen == before:  # two errors at the same position: the file is truncated
                    return
                before = seen

    def frames(self) -> Iterator[Frame]:
        """Yield frames, each with the duration in seconds of the damaged packets before it."""
        lost, drop_first = Fraction(0), self._drop_first
        for packet in self.demux():
            self.packets += bool(packet.size)
            try:
                frames = packet.decode()
            except av.FFmpegError:
                if packet.size:
                    self.damaged += 1
                    lost += (packet.duration or 0) * self.time_base
                continue
            if drop_first:  # the first block overlaps with nothing; FFmpeg would also skip it
                drop_first, frames = False, []
            for frame in frames:
                self.silent += bool(lost)
                yield frame, lost
                lost = Fraction(0)

    def check(self) -> None:
        """Warn once about damaged packets, except for the last packet of a truncated file.

        Raises:
            AudioError: more than half of the packets are damaged.
        """
        verb = "is" if self.damaged == 1 else "are"
        count = f"{self.damaged} of {plural(self.packets, 'packet')} {verb} damaged"
        if 2 * self.damaged > self.packets:
            raise AudioError(f"{self.file.path}: cannot be decoded ({count})")
        if self.silent:
            warn_once(self.file.path, f"{count}; replaced by silence")


@contextmanager
def opened(file: AudioFile) -> Iterator[Stream]:
    """Open the default audio stream of a file with FFmpeg.

    Raises:
        AudioError: the file has no audio stream, or one with a codec that FFmpeg does not support.
        av.FFmpegError: FFmpeg does not recognise the file.
    """
    options: dict[str, str] = {}
    if file.content.name == "WAV" and wav_exceeds_header(file):
        options["ignore_length"] = "1"
    if not _CONTROL.search(file.read(0, HEAD_BYTES)):
        # Text may be a playlist or a session description. No protocol has this name, so FFmpeg
        # opens no other file and no network connection. (With any whitelist, FFmpeg before 8.1
        # crashes on SWF, which is not text.)
        options["protocol_whitelist"] = "none"
    with av.open(file.for_av(), "r", options=options, **_TAGS) as container:
        streams = container.streams.audio
        if not streams:
            raise AudioError(f"{file.path}: has no audio stream")
        known = [stream for stream in streams if stream.codec_context is not None]
        if not known:
            raise AudioError(f"{file.path}: FFmpeg does not support its audio codec")
        default = (stream for stream in known if stream.disposition & Disposition.default)
        yield Stream(file, container, next(default, known[0]))


@dataclass(frozen=True)
class Clock:
    """Convert timestamps to positions of frames.

    Args:
        rate: sample rate of the stream, in Hz.
        time_base: duration of a tick, in seconds.
        origin: timestamp of the first frame.
        grid: spacing in samples of the possible frame positions, counted from ``grid_origin``; 1
            unless timestamps are coarser than samples.
        grid_origin: a position, in samples, at which a frame begins.
    """

    rate: int
    time_base: Fraction
    origin: int
    grid: int = 1
    grid_origin: int = 0

    def position(self, timestamp: int) -> int:
        """Return the sample at which a frame with this timestamp begins."""
        if timestamp <= self.origin:  # the first frame, which may be shorter than the grid
            return 0
        # Integer arithmetic, because this is called for every frame.
        step = self.time_base.denominator * self.grid
        ticks = (timestamp - self.origin) * self.time_base.numerator * self.rate
        ahead = ticks - self.grid_origin * self.time_base.denominator
        return (2 * ahead + step) // (2 * step) * self.grid + self.grid_origin

    @property
    def tolerance(self) -> int:
        """Number of samples by which timestamps may differ from the counted position.

        Some timestamps are rounded, and those of Vorbis are late by part of a frame where long and
        short blocks meet.
        """
        return self.rate // 20

    def begin_of(self, frames: list[av.AudioFrame]) -> int | None:
        """Return the position of consecutive frames, by majority vote of their timestamps."""
        counted, votes = 0, Counter[int]()
        for frame in frames:
            if frame.pts is not None:
                votes[self.position(frame.pts) - counted] += 1
            counted += frame.samples * self.rate // frame.sample_rate
        return min(votes, key=lambda position: (-votes[position], position)) if votes else None


def locate(
    frames: Iterable[Frame], rate: int, clock: Clock | None = None, at: int = 0, keep_from: int = 0
) -> Iterator[Located]:
    """Determine the position of each frame in the file.

    Args:
        frames: frames from :meth:`Stream.frames`.
        rate: sample rate of the yielded blocks, in Hz; frames with other rates are resampled.
        clock: detects gaps between frames; ``None`` counts samples.
        at: position of the first frame, in samples.
        keep_from: frames that end before this position are dropped.
    """
    kind, convert = None, av.AudioResampler(format="fltp", rate=rate)
    tolerance = 0 if clock is None else clock.tolerance
    longest_gap = _LONGEST_GAP_S * rate
    for frame, lost in frames:
        if lost:
            at += round(lost * rate)
        if clock is not None and frame.pts is not None:
            stamped = clock.position(frame.pts)
            if tolerance < stamped - at < longest_gap:
                at = stamped
        if frame.sample_rate == rate and at + frame.samples <= keep_from:
            at += frame.samples
            continue
        if kind != (kind := (frame.sample_rate, frame.format.name, frame.layout.name)):
            convert = av.AudioResampler(format="fltp", rate=rate)
            is_ready = kind[:2] == (rate, "fltp")
        for block in [frame] if is_ready else convert.resample(frame):
            length = block.samples
            yield (
                at,
                [np.frombuffer(memoryview(plane), np.float32, length) for plane in block.planes],
            )
            at += length


def cut(located: Iterable[Located], first: int, end: int | None, mono: Downmix) -> Iterator[Tensor]:
    """Yield mono samples ``first`` to ``end`` in blocks; gaps between frames become silence."""
    batch: list[list[np.ndarray]] = []
    at, held = first, 0
    for place, block in located:
        if end is not None and place >= end:
            break
        if place < at or (end is not None and place + len(block[0]) > end):
            until = None if end is None else end - place
            block = [channel[max(0, at - place) : until] for channel in block]
        length, gap = len(block[0]), max(0, place - at)
        if not length:
            continue
        if gap or held >= _BATCH or (batch and len(block) != len(batch[0])):
            if batch:
                yield _mixed(batch, mono)
            yield from _silence(gap)
            batch, held = [], 0
        batch.append(block)
        held += length
        at += gap + length
        if end is not None and at >= end:
            break
    if batch:
        yield _mixed(batch, mono)


def _mixed(batch: list[list[np.ndarray]], mono: Downmix) -> Tensor:
    channels = [torch.from_numpy(np.concatenate(blocks)) for blocks in zip(*batch, strict=True)]
    return mono((torch.stack(channels) if len(channels) > 1 else channels[0][None]).T)


def _silence(length: int) -> Iterator[Tensor]:
    for begin in range(0, length, _BATCH):
        yield torch.zeros(min(_BATCH, length - begin))
