"""Read audio files as 16 kHz mono samples: ``read_audio(path, start, num_samples) -> (L,) int16``.

A file's content determines its decoder: libsndfile for FLAC, WAV, AIFF and similar formats, FFmpeg
for everything else (mp3, ogg, mkv, mp4, m4a, webm, ...); if one fails, the other is tried. A file
is decoded to its end even if its header gives another length. Audio is resampled to 16 kHz, and its
channels are averaged. A path may also name a file inside an archive
(:mod:`mae_ast.core.io.archive`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import av
import numpy as np
import soundfile
import torch
from torch import Tensor

from mae_ast.core.io.decoding import length as audio_length
from mae_ast.core.io.decoding import libsndfile, seek
from mae_ast.core.io.decoding.audio_file import AudioError, AudioFile, UndecodableError, open_audio
from mae_ast.core.io.decoding.downmix import Downmix
from mae_ast.core.io.decoding.length import AudioHeader, AudioInfo
from mae_ast.core.io.decoding.resample import SAMPLE_RATE, Part, resample_to_16k, to_pcm16
from mae_ast.core.io.first_line import first_line
from mae_ast.core.io.remote.urls import RemoteError, is_url
from mae_ast.core.io.retry import is_transient, retried

__all__ = [
    "MAX_PEAK",
    "SAMPLE_RATE",
    "SOURCE_RATES",
    "AudioError",
    "AudioHeader",
    "AudioInfo",
    "num_samples_16k",
    "probe_audio",
    "probe_rate",
    "read_audio",
    "read_header",
    "read_long_audio",
    "resample_to_16k",
    "stream_audio",
    "to_pcm16",
]

MAX_PEAK = 2.0  # for float samples; larger values are integers that were cast to float
SOURCE_RATES = (1_000, 768_000)  # Hz, lowest and highest supported

_DECODER_ERRORS = (UndecodableError, soundfile.LibsndfileError, av.FFmpegError)

N = TypeVar("N", int, np.ndarray)
R = TypeVar("R")


def num_samples_16k(num_frames: N, sample_rate: N) -> N:
    """Return the length at 16 kHz of ``num_frames`` samples at ``sample_rate`` Hz.

    Both may be integers or integer arrays.
    """
    rounded_up: N = -(-num_frames * SAMPLE_RATE // sample_rate)
    return rounded_up


def probe_audio(path: str | os.PathLike[str]) -> AudioInfo:
    """Find the length and sample rate of an audio file.

    Only the header is read if it is correct. If it gives no length, or one that does not match the
    file, the length is measured by decoding and ``note`` is set.

    Raises:
        FileNotFoundError: the file does not exist.
        RemoteError: the file is in a remote shard that cannot be fetched.
        AudioError: the file is empty, has no audio stream, or no decoder can read it.
    """

    def by_soundfile(file: AudioFile) -> AudioInfo:
        info = audio_length.length_by_soundfile(file)
        _check_rate(info.sample_rate, file)
        return info

    def by_av(file: AudioFile) -> AudioInfo:
        info = audio_length.length_by_av(file)
        _check_rate(info.sample_rate, file)
        return info

    return _with_decoder(path, by_soundfile, by_av, "cannot be read as audio")


def probe_rate(path: str | os.PathLike[str]) -> int:
    """Return the sample rate of an audio file in Hz, without determining its length.

    Raises:
        FileNotFoundError, AudioError: see :func:`probe_audio`.
    """

    def by_soundfile(file: AudioFile) -> int:
        with libsndfile.opened(file) as sound:
            return _check_rate(int(sound.samplerate), file)

    def by_av(file: AudioFile) -> int:
        with seek.started(file) as opened:
            return _check_rate(opened.rate, file)

    return _with_decoder(path, by_soundfile, by_av, "cannot be read as audio")


def read_header(path: str | os.PathLike[str]) -> AudioHeader:
    """Read the sample rate of a file, and the length that its header gives.

    Unlike :func:`probe_audio`, which verifies the length, this reads little more than the header.

    Raises:
        FileNotFoundError, AudioError: see :func:`probe_audio`.
    """
    return _with_decoder(
        path,
        audio_length.header_by_soundfile,
        audio_length.header_by_av,
        "cannot be read as audio",
    )


def read_audio(
    path: str | os.PathLike[str], start: int = 0, num_samples: int | None = None
) -> Tensor:
    """Decode part of a file as 16 kHz mono.

    The result equals the same slice of the whole decoded file; resampled audio may differ by one
    16-bit step.

    Args:
        path: any file that soundfile or PyAV reads, also ``archive:offset:length``.
        start: first sample, counted at 16 kHz.
        num_samples: number of samples at 16 kHz; ``None`` reads to the end. Fewer are returned if
            the file ends earlier.

    Returns:
        (L,) int16.

    Raises:
        FileNotFoundError: the file does not exist.
        RemoteError: the file is in a remote shard that cannot be fetched.
        AudioError: the file cannot be decoded, contains no audio, or has values that are not finite
            or far beyond full scale.
    """
    samples = _decode(path, start, num_samples, _concatenate)
    if samples.numel() == 0:
        raise AudioError(_no_audio(path, start))
    return samples


def read_long_audio(path: str | os.PathLike[str]) -> Tensor:
    """Read a whole file like :func:`read_audio`, decoding it in blocks to save memory.

    Raises:
        FileNotFoundError, AudioError: see :func:`read_audio`.
    """
    return read_audio(path)


def stream_audio(
    path: str | os.PathLike[str],
    use: Callable[[Iterator[Tensor]], R],
    start: int = 0,
    num_samples: int | None = None,
) -> R:
    """Decode a file or part of it like :func:`read_audio`, in blocks and in constant memory.

    Args:
        path, start, num_samples: as in :func:`read_audio`.
        use: function of an iterator over (L,) int16 blocks; called again with all blocks if
            decoding fails and is retried.

    Returns:
        The result of ``use``.

    Raises:
        FileNotFoundError, AudioError: see :func:`read_audio`.
    """

    def checked(blocks: Iterator[Tensor]) -> Iterator[Tensor]:
        is_empty = True
        for block in blocks:
            is_empty = False
            yield block
        if is_empty:
            raise AudioError(_no_audio(path, start))

    return _decode(path, start, num_samples, lambda blocks: use(checked(blocks)))


def _decode(
    path: str | os.PathLike[str],
    start: int,
    num_samples: int | None,
    use: Callable[[Iterator[Tensor]], R],
) -> R:
    return _with_decoder(
        path,
        lambda file: use(_blocks_by_soundfile(file, start, num_samples)),
        lambda file: use(_blocks_by_av(file, start, num_samples)),
        "cannot be decoded",
    )


def _no_audio(path: str | os.PathLike[str], start: int) -> str:
    after = f" after {start / SAMPLE_RATE:.3f} s" if start else ""
    return f"{_absolute_path(path)}: contains no audio{after}"


def _concatenate(blocks: Iterator[Tensor]) -> Tensor:
    all_blocks = list(blocks)
    if len(all_blocks) == 1:
        return all_blocks[0]
    return torch.cat([torch.empty(0, dtype=torch.int16), *all_blocks])


def _blocks_by_soundfile(file: AudioFile, start: int, num_samples: int | None) -> Iterator[Tensor]:
    with libsndfile.opened(file) as sound:
        rate = _check_rate(int(sound.samplerate), file)
        part = Part.of(rate, start, num_samples)
        reaches_end = part.end_frame is None or part.end_frame > sound.frames
        if reaches_end and not audio_length.is_whole(file, sound):
            raise UndecodableError("its header gives no length")
        mono = Downmix(file.path)
        blocks = libsndfile.blocks(sound, part.first_frame, part.end_frame, mono)
        is_float = libsndfile.is_float(sound)
        yield from part.finish(_check_values(blocks, file, is_float), rate)


def _blocks_by_av(file: AudioFile, start: int, num_samples: int | None) -> Iterator[Tensor]:
    links = audio_length.lengths_of_links(file)
    if links:
        yield from _blocks_of_links(links, start, num_samples)
        return
    with seek.started(file) as opened:
        rate = _check_rate(opened.rate, file)
        part = Part.of(rate, start, num_samples)
        is_float = opened.stream.audio.codec_context.name.startswith("pcm_f")
        blocks = seek.blocks(opened, part.first_frame, part.end_frame)
        yield from part.finish(_check_values(blocks, file, is_float), rate)


def _blocks_of_links(
    links: list[tuple[AudioFile, AudioInfo]], start: int, num_samples: int | None
) -> Iterator[Tensor]:
    """Read a part of concatenated files, each with its own sample rate and channels."""
    at = 0
    for file, info in links:
        length = num_samples_16k(info.num_frames, info.sample_rate)
        first = max(start, at)
        end = at + length if num_samples is None else min(at + length, start + num_samples)
        if first < end:
            left = end - first
            for block in _blocks_by_av(file, first - at, left):
                left -= len(block)
                yield block
            yield torch.zeros(left, dtype=torch.int16)
        at += length


@retried
def _with_decoder(
    path: str | os.PathLike[str],
    by_soundfile: Callable[[AudioFile], R],
    by_av: Callable[[AudioFile], R],
    problem: str,
) -> R:
    """Read a file with the decoder chosen by its content, or with the other one if that fails."""
    path = _absolute_path(path)
    try:
        with open_audio(path) as file:
            first, second = by_soundfile, by_av
            if not file.content.by_soundfile:
                first, second = by_av, by_soundfile
            try:
                return first(file)
            except _DECODER_ERRORS as error:
                if isinstance(error, soundfile.LibsndfileError) and is_transient(error):
                    raise  # the other decoder would mistake the failed read for the end of the file
                reason = _error_reason(error, file)
            try:
                return second(file)
            except (*_DECODER_ERRORS, AudioError) as error:
                raise AudioError(f"{path}: {problem} ({reason})") from error
    except (AudioError, FileNotFoundError, RemoteError):
        raise
    except Exception as error:  # decoders raise many kinds of errors; all mean a bad file
        raise AudioError(f"{path}: {problem} ({first_line(error)})") from error


def _check_values(blocks: Iterable[Tensor], file: AudioFile, is_float: bool) -> Iterator[Tensor]:
    """Raise on values that are not finite, or float samples far beyond full scale."""
    for block in blocks:
        if block.dtype != torch.int16 and block.numel():
            peak = float(block.abs().max())
            if not np.isfinite(peak):
                raise AudioError(
                    f"{file.path}: contains values that are not finite (NaN or infinity)"
                )
            if is_float and peak > MAX_PEAK:
                raise AudioError(f"{file.path}: {_out_of_range(peak)}")
        yield block


def _out_of_range(peak: float) -> str:
    bits = 16 if peak <= 2**15 else 24 if peak <= 2**23 else 32
    return (
        f"contains float samples up to {peak:.6g}, but full scale is 1; if they are {bits}-bit "
        f"values, divide them by {2 ** (bits - 1)} or store them as integers"
    )


def _check_rate(rate: int, file: AudioFile) -> int:
    lowest, highest = SOURCE_RATES
    if not lowest <= rate <= highest:
        raise AudioError(
            f"{file.path}: sample rate {rate} Hz is not supported; expected {lowest} to {highest}"
        )
    return rate


def _absolute_path(path: str | os.PathLike[str]) -> str:
    path = os.fspath(path)
    if is_url(path):
        return path
    return os.path.abspath(path)  # FFmpeg would take a relative "12:30.mkv" for a URL


def _error_reason(error: Exception, file: AudioFile) -> str:
    words = first_line(error)
    if isinstance(error, soundfile.LibsndfileError):
        words = " ".join(str(error.error_string).split())
    elif isinstance(error, av.FFmpegError):
        words = error.strerror or words
    return f"its content is {file.content.name}: {words}" if file.content.name else words
