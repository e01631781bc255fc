"""A file on disk to 16 kHz mono samples: ``read_audio(path, start, num_samples) -> (L,) int16``.

flac, wav, ogg and mp3 are read by soundfile, everything else (mkv, mp4, m4a, webm, ...) by PyAV.
Of flac, wav and mp3 only the part that is asked for is read; where a seek is not exact, decoding
runs from the start of the file to the end of the part, and only the part is kept. Other sample
rates are resampled, several channels averaged. A path may be one within an archive
(:mod:`mae_ast.core.archive`); what is read is the same.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import BinaryIO, TypeVar

import av
import numpy as np
import soundfile
import torch
from torch import Tensor
from torchaudio.transforms import Resample

from mae_ast.core.archive import Member, open_member

SAMPLE_RATE = 16_000  # Hz, of everything that leaves this file
SOURCE_RATES = (1_000, 768_000)  # Hz, lowest and highest that a file may have

SOUNDFILE_SUFFIXES = frozenset({".flac", ".wav", ".ogg", ".oga", ".mp3"})
AUDIO_SUFFIXES = SOUNDFILE_SUFFIXES | {
    *(".mkv", ".mka", ".mp4", ".m4a", ".webm", ".opus", ".aac", ".wma", ".mov", ".avi"),
    *(".aiff", ".aif", ".au"),
}

# torchaudio's resampling filter spans 6 zero crossings of the lower rate, rolled off at 0.99.
_FILTER_ZERO_CROSSINGS = 6
_FILTER_ROLLOFF = 0.99
# torchaudio's kernel has as many values as the two steps of the ratio multiply to; at 22,254 Hz
# that is gigabytes. Such rates go through FFmpeg's resampler instead.
_MAX_KERNEL = 1_000_000

_MP3_PREROLL = 16 * 1_152  # samples that an MP3 decoder wants to have seen before it is exact
_BLOCK = 900 * SAMPLE_RATE  # of a long file that is decoded at a time
_NO_LENGTH = 2**62  # what soundfile says from there on is no length


class AudioError(ValueError):
    """A file that holds no usable audio; the message names the file and says why."""


@dataclass(frozen=True)
class AudioInfo:
    """What a file's header says.

    Args:
        num_frames: samples of one channel, at ``sample_rate``; 0 where the header does not say.
        sample_rate: the file's own rate, in Hz.
    """

    num_frames: int
    sample_rate: int


N = TypeVar("N", int, np.ndarray)
File = bytes | BinaryIO  # a loose file's path, or the file itself


def num_samples_16k(num_frames: N, sample_rate: N) -> N:
    """Length at 16 kHz of ``num_frames`` samples at ``sample_rate`` Hz; arrays will do too."""
    rounded_up: N = -(-num_frames * SAMPLE_RATE // sample_rate)
    return rounded_up


def probe_audio(path: str | os.PathLike[str]) -> AudioInfo:
    """Read the header of an audio file.

    Raises:
        FileNotFoundError: there is no such file.
        AudioError: the file is empty, or no decoder knows it, or it has no audio stream.
    """
    path = _absolute(path)
    with _named_errors(path, "cannot be read as audio"):
        file, is_soundfile = _open(path)
        if is_soundfile:
            info = soundfile.info(file)
            frames = int(info.frames) if info.frames < _NO_LENGTH else 0
            return AudioInfo(frames, _checked_rate(int(info.samplerate), path))
        with _open_av(file) as container:
            stream = _audio_stream(container, path)
            rate = _checked_rate(int(stream.rate), path)
            if stream.duration is not None and stream.time_base is not None:
                seconds = float(stream.duration * stream.time_base)
            else:
                seconds = (container.duration or 0) / av.time_base
            return AudioInfo(max(0, round(seconds * rate)), rate)


def read_audio(
    path: str | os.PathLike[str], start: int = 0, num_samples: int | None = None
) -> Tensor:
    """Decode a part of a file as 16 kHz mono.

    A part of a resampled file equals the same part of the whole file resampled.

    Args:
        path: any file that soundfile or PyAV reads, also ``archive:offset:length``.
        start: first sample, counted at 16 kHz.
        num_samples: samples wanted, counted at 16 kHz; ``None`` reads to the end. Fewer come back
            where the file ends earlier.

    Returns:
        (L,) int16.

    Raises:
        FileNotFoundError: there is no such file.
        AudioError: it cannot be decoded, holds no audio, or holds values that are not finite.
    """
    path = _absolute(path)
    samples = _read(path, start, num_samples)
    if samples.numel() == 0:
        raise AudioError(f"{path}: holds no audio from {start / SAMPLE_RATE:.3f} s on")
    return samples


def read_long_audio(path: str | os.PathLike[str]) -> Tensor:
    """All of a file, as :func:`read_audio` gives it, with less memory.

    Decoded in blocks of 15 minutes: the result, 115 MB an hour, is held whole, and of ogg also the
    file at its own rate.

    Raises:
        FileNotFoundError, AudioError: as :func:`read_audio`.
    """
    blocks = [read_audio(path, 0, _BLOCK)]
    while len(blocks[-1]) == _BLOCK:
        blocks.append(_read(_absolute(path), len(blocks) * _BLOCK, _BLOCK))
    return torch.cat(blocks)


def _read(path: str, start: int, num_samples: int | None) -> Tensor:
    """:func:`read_audio`, which may give nothing."""
    with _named_errors(path, "cannot be decoded"):
        file, is_soundfile = _open(path)
        reader = _read_soundfile if is_soundfile else _read_av
        return reader(file, path, start, num_samples)


def to_pcm16(waveform: Tensor) -> Tensor:
    """(..., L) float in [-1, 1] to int16, rounded to nearest; what lies outside is clipped."""
    return (waveform * 32768.0).round_().clamp_(-32768, 32767).to(torch.int16)


def _read_soundfile(opened: File, path: str, start: int, num_samples: int | None) -> Tensor:
    with soundfile.SoundFile(opened) as file:
        rate = _checked_rate(int(file.samplerate), path)
        part = _Part.of(rate, start, num_samples)
        if part.first_frame >= file.frames > 0:
            return torch.empty(0, dtype=torch.int16)
        dtype = "int16" if file.subtype == "PCM_16" else "float32"
        # How far before the part decoding begins. An Opus decoder needs its past, and a Vorbis
        # file is off by a page's rest after a seek to its end.
        before = {"OGG": part.first_frame, "MP3": min(part.first_frame, _MP3_PREROLL)}
        to_drop = before.get(file.format, 0)
        file.seek(part.first_frame - to_drop)
        # One call: soundfile seeks between calls, and the decoder would lose its past again.
        frames = file.read(
            -1 if part.num_frames is None else to_drop + part.num_frames,
            dtype=dtype,
            always_2d=True,
        )[to_drop:]
    return _finish([_mono(torch.from_numpy(frames))], rate, part, start, num_samples, path)


def _read_av(opened: File, path: str, start: int, num_samples: int | None) -> Tensor:
    blocks: list[Tensor] = []
    with _open_av(opened) as container:
        stream = _audio_stream(container, path)
        rate, kind, decoded = 0, None, 0
        for frame in container.decode(stream):
            if not rate:
                rate = _checked_rate(frame.sample_rate, path)
                part = _Part.of(rate, start, num_samples)
            if kind != (kind := (frame.sample_rate, frame.format.name, frame.layout.name)):
                to_planar_float = av.AudioResampler(format="fltp", rate=rate)
            for block in to_planar_float.resample(frame):
                samples = torch.from_numpy(block.to_ndarray()).mean(dim=0)
                if decoded + len(samples) > part.first_frame:
                    blocks.append(samples[max(0, part.first_frame - decoded) :])
                decoded += len(samples)
            if part.num_frames is not None and decoded >= part.first_frame + part.num_frames:
                break
    return _finish(blocks, rate, part, start, num_samples, path) if rate else torch.empty(0)


@dataclass(frozen=True)
class _Part:
    """Which frames of the source to read, so that resampling them has its filter's margin."""

    first_frame: int  # at the source's rate; a multiple of the resampling ratio's denominator
    num_frames: int | None
    first_sample: int  # the same place at 16 kHz, exactly

    @classmethod
    def of(cls, rate: int, start: int, num_samples: int | None) -> _Part:
        if rate == SAMPLE_RATE:
            return cls(start, num_samples, start)
        common = math.gcd(rate, SAMPLE_RATE)
        source_step, target_step = rate // common, SAMPLE_RATE // common
        lower_rate = min(rate, SAMPLE_RATE) * _FILTER_ROLLOFF
        margin = math.ceil(_FILTER_ZERO_CROSSINGS * rate / lower_rate) + source_step
        step = max(0, (start * source_step // target_step - margin) // source_step)
        first_frame = step * source_step
        if num_samples is None:
            return cls(first_frame, None, step * target_step)
        end_frame = math.ceil((start + num_samples) * source_step / target_step) + margin
        return cls(first_frame, end_frame - first_frame, step * target_step)


def _mono(frames: Tensor) -> Tensor:
    """(frames, channels) to (frames,): int16 stays where there is one channel, else float32."""
    if frames.shape[1] == 1:
        return frames[:, 0]
    if frames.dtype != torch.int16:
        return frames.mean(dim=1)
    # A product adds up several times as fast as a mean does; sums of int16 are exact in float32.
    sums = frames.float() @ torch.ones(frames.shape[1])
    return sums / frames.shape[1] / 32768


def _finish(
    blocks: list[Tensor], rate: int, part: _Part, start: int, num_samples: int | None, path: str
) -> Tensor:
    """Mono blocks at ``rate`` to the wanted (L,) int16 at 16 kHz."""
    samples = torch.cat(blocks) if blocks else torch.empty(0)
    if part.num_frames is not None:
        samples = samples[: part.num_frames]
    if samples.dtype != torch.int16 and not bool(torch.isfinite(samples).all()):
        raise AudioError(f"{path}: holds values that are not finite (NaN or infinity)")
    if rate != SAMPLE_RATE and len(samples):
        is_pcm16 = samples.dtype == torch.int16
        samples = resample_to_16k(samples.float() / 32768 if is_pcm16 else samples, rate)
    if samples.dtype != torch.int16:
        samples = to_pcm16(samples)
    skip = start - part.first_sample
    return samples[skip:] if num_samples is None else samples[skip : skip + num_samples]


def resample_to_16k(samples: Tensor, rate: int) -> Tensor:
    """(frames,) float32 at ``rate`` to 16 kHz."""
    common = math.gcd(rate, SAMPLE_RATE)
    if (rate // common) * (SAMPLE_RATE // common) <= _MAX_KERNEL:
        resampled: Tensor = _resampler(rate // common, SAMPLE_RATE // common)(samples)
        return resampled
    frame = av.AudioFrame.from_ndarray(samples.numpy()[None], format="fltp", layout="mono")
    frame.sample_rate = rate
    resampler = av.AudioResampler(format="fltp", layout="mono", rate=SAMPLE_RATE)
    blocks = [*resampler.resample(frame), *resampler.resample(None)]
    return torch.from_numpy(np.concatenate([block.to_ndarray()[0] for block in blocks]))


@lru_cache(maxsize=16)
def _resampler(source_step: int, target_step: int) -> Resample:
    """torchaudio's, which computes its kernel once: 0.6 ms a clip at 44.1 kHz."""
    return Resample(source_step, target_step, dtype=torch.float32)


@contextmanager
def _named_errors(path: str, what: str) -> Iterator[None]:
    """Decoders fail in many ways; all of them mean that this file is bad."""
    try:
        yield
    except (AudioError, FileNotFoundError):
        raise
    except Exception as error:
        raise AudioError(f"{path}: {what} ({_one_line(error)})") from error


def _open_av(file: File) -> av.container.InputContainer:
    name = os.fsdecode(file) if isinstance(file, bytes) else file
    return av.open(name, "r", metadata_errors="replace")  # a tag's encoding is no one's concern


def _checked_rate(rate: int, path: str) -> int:
    lowest, highest = SOURCE_RATES
    if not lowest <= rate <= highest:
        raise AudioError(f"{path}: a sample rate of {rate} Hz, not {lowest} to {highest}")
    return rate


def _audio_stream(container: av.container.InputContainer, path: str) -> av.AudioStream:
    if not container.streams.audio:
        raise AudioError(f"{path}: has no audio stream")
    stream = container.streams.audio[0]
    if stream.codec_context is None:
        raise AudioError(f"{path}: its audio is of a kind that FFmpeg does not know")
    return stream


def _absolute(path: str | os.PathLike[str]) -> str:
    return os.path.abspath(os.fspath(path))  # "12:30.mkv" is no address


def _open(path: str) -> tuple[File, bool]:
    """What decoders open, and whether soundfile is the one to read it."""
    member = Member.parse(path)
    if member is None and not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such audio file")
    if (os.path.getsize(path) if member is None else member.length) == 0:
        raise AudioError(f"{path}: is empty (0 bytes)")
    if member is None:
        file: File = os.fsencode(path)
        suffix = os.path.splitext(path)[1]
    else:
        suffix, _, file, _ = open_member(member)
    return file, suffix.lower() in SOUNDFILE_SUFFIXES


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
