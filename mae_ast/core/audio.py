"""A file on disk to 16 kHz mono samples: ``read_audio(path, start, num_samples) -> (L,) int16``.

flac, wav, ogg and mp3 are read by soundfile, which seeks to the part that is asked for;
everything else (mkv, mp4, m4a, webm, ...) by PyAV, which decodes from the start of the file and
stops at the end of the part. Other sample rates are resampled, several channels averaged.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import av
import numpy as np
import soundfile
import torch
from torch import Tensor
from torchaudio.functional import resample

SAMPLE_RATE = 16_000  # Hz, of everything that leaves this file

SOUNDFILE_SUFFIXES = frozenset({".flac", ".wav", ".ogg", ".oga", ".mp3"})
AUDIO_SUFFIXES = SOUNDFILE_SUFFIXES | {
    *(".mkv", ".mka", ".mp4", ".m4a", ".webm", ".opus", ".aac", ".wma", ".mov", ".avi"),
    *(".aiff", ".aif", ".au"),
}

# torchaudio's resampling filter spans 6 zero crossings of the lower rate, rolled off at 0.99.
_FILTER_ZERO_CROSSINGS = 6
_FILTER_ROLLOFF = 0.99


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


def num_samples_16k(num_frames: int, sample_rate: int) -> int:
    """Length at 16 kHz of ``num_frames`` samples at ``sample_rate`` Hz."""
    return math.ceil(num_frames * SAMPLE_RATE / sample_rate)


def probe_audio(path: str | os.PathLike[str]) -> AudioInfo:
    """Read the header of an audio file.

    Raises:
        FileNotFoundError: there is no such file.
        AudioError: the file is empty, or no decoder knows it, or it has no audio stream.
    """
    path = _existing(path)
    try:
        if _is_soundfile(path):
            info = soundfile.info(path)
            return AudioInfo(int(info.frames), int(info.samplerate))
        with av.open(path) as container:
            stream = _audio_stream(container, path)
            rate = int(stream.rate)
            if stream.duration is not None and stream.time_base is not None:
                seconds = float(stream.duration * stream.time_base)
            else:
                seconds = (container.duration or 0) / av.time_base
            return AudioInfo(round(seconds * rate), rate)
    except (soundfile.SoundFileError, av.FFmpegError) as error:
        raise AudioError(f"{path}: cannot be read as audio ({_one_line(error)})") from error


def read_audio(
    path: str | os.PathLike[str], start: int = 0, num_samples: int | None = None
) -> Tensor:
    """Decode a part of a file as 16 kHz mono.

    A part of a resampled file equals the same part of the whole file resampled.

    Args:
        path: any file that soundfile or PyAV reads.
        start: first sample, counted at 16 kHz.
        num_samples: samples wanted, counted at 16 kHz; ``None`` reads to the end. Fewer come back
            where the file ends earlier.

    Returns:
        (L,) int16.

    Raises:
        FileNotFoundError: there is no such file.
        AudioError: it cannot be decoded, holds no audio, or holds values that are not finite.
    """
    path = _existing(path)
    try:
        reader = _read_soundfile if _is_soundfile(path) else _read_av
        samples = reader(path, start, num_samples)
    except (soundfile.SoundFileError, av.FFmpegError) as error:
        raise AudioError(f"{path}: cannot be decoded ({_one_line(error)})") from error
    if samples.numel() == 0:
        raise AudioError(f"{path}: holds no audio from {start / SAMPLE_RATE:.3f} s on")
    return samples


def to_pcm16(waveform: Tensor) -> Tensor:
    """(..., L) float in [-1, 1] to int16, rounded to nearest; what lies outside is clipped."""
    return (waveform * 32768.0).round_().clamp_(-32768, 32767).to(torch.int16)


def _read_soundfile(path: str, start: int, num_samples: int | None) -> Tensor:
    with soundfile.SoundFile(path) as file:
        rate = int(file.samplerate)
        if file.subtype == "OPUS" and (start > 0 or num_samples is not None):
            # An Opus decoder needs its past: what it gives after a seek differs by 5e-3.
            part = _Part.whole(rate)
        else:
            part = _Part.of(rate, start, num_samples)
        if part.first_frame >= file.frames > 0:
            return torch.empty(0, dtype=torch.int16)
        file.seek(part.first_frame)
        is_pcm16 = file.subtype == "PCM_16"
        frames = file.read(
            -1 if part.num_frames is None else part.num_frames,
            dtype="int16" if is_pcm16 else "float32",
            always_2d=True,
        )
    return _finish(frames, rate, part, start, num_samples, path)


def _read_av(path: str, start: int, num_samples: int | None) -> Tensor:
    with av.open(path) as container:
        stream = _audio_stream(container, path)
        rate = int(stream.rate)
        wanted = _Part.of(rate, start, num_samples)
        last = None if wanted.num_frames is None else wanted.first_frame + wanted.num_frames
        to_planar_float = av.AudioResampler(format="fltp")
        blocks: list[np.ndarray] = []
        decoded = 0
        for frame in container.decode(stream):
            for block in to_planar_float.resample(frame):
                blocks.append(block.to_ndarray())  # (channels, frames) float32
                decoded += block.samples
            if last is not None and decoded >= last:
                break
    if not blocks:
        return torch.empty(0, dtype=torch.int16)
    frames = np.concatenate(blocks, axis=1).T
    return _finish(frames, rate, _Part.whole(rate), start, num_samples, path)


@dataclass(frozen=True)
class _Part:
    """Which frames of the source to read, so that resampling them has its filter's margin."""

    first_frame: int  # at the source's rate; a multiple of the resampling ratio's denominator
    num_frames: int | None
    first_sample: int  # the same place at 16 kHz, exactly

    @classmethod
    def whole(cls, rate: int) -> _Part:
        return cls(0, None, 0)

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


def _finish(
    frames: np.ndarray, rate: int, part: _Part, start: int, num_samples: int | None, path: str
) -> Tensor:
    """(frames, channels) int16 or float32 at ``rate`` to the wanted (L,) int16 at 16 kHz."""
    samples = torch.from_numpy(frames)
    if frames.dtype != np.int16 and not bool(torch.isfinite(samples).all()):
        raise AudioError(f"{path}: holds values that are not finite (NaN or infinity)")
    is_exact = frames.dtype == np.int16 and frames.shape[1] == 1 and rate == SAMPLE_RATE
    if is_exact:
        samples = samples[:, 0]
    elif len(samples):
        scale = 1 / 32768 if frames.dtype == np.int16 else 1.0
        mono = samples.float().mean(dim=1) * scale
        samples = to_pcm16(resample(mono, rate, SAMPLE_RATE) if rate != SAMPLE_RATE else mono)
    else:
        samples = torch.empty(0, dtype=torch.int16)
    skip = start - part.first_sample
    return samples[skip:] if num_samples is None else samples[skip : skip + num_samples]


def _audio_stream(container: av.container.InputContainer, path: str) -> av.AudioStream:
    if not container.streams.audio:
        raise AudioError(f"{path}: has no audio stream")
    return container.streams.audio[0]


def _existing(path: str | os.PathLike[str]) -> str:
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such audio file")
    if os.path.getsize(path) == 0:
        raise AudioError(f"{path}: is empty (0 bytes)")
    return path


def _is_soundfile(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in SOUNDFILE_SUFFIXES


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
