"""Read audio with libsndfile: ``opened(file)``, then ``blocks(sound, first, end) -> (L,) mono``.

libsndfile is chosen for formats in which it seeks sample-exactly. Formats in which it cannot seek
(G.721, NMS ADPCM, DPCM) are decoded from the start.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import soundfile
import torch
from torch import Tensor

from mae_ast.core.io.decoding.audio_file import AudioFile, UndecodableError
from mae_ast.core.io.decoding.downmix import Downmix

NO_LENGTH = 2**62  # frame counts from here on mean that the header gives no length
# libsndfile decodes the padding byte of GSM to noise, and counts padding of MP3 in WAV that it does
# not return.
_LEFT_TO_FFMPEG = ("GSM610", "MPEG_LAYER_I", "MPEG_LAYER_II", "MPEG_LAYER_III")
_BLOCK = 2**20  # frames decoded at a time


@contextmanager
def opened(file: AudioFile) -> Iterator[soundfile.SoundFile]:
    """Open a file with libsndfile.

    Raises:
        soundfile.LibsndfileError: libsndfile cannot read the file.
        UndecodableError: the codec is GSM or MPEG audio, whose end libsndfile reports wrongly.
    """
    handle = file.for_soundfile()
    with soundfile.SoundFile(handle, closefd=False) as sound:
        if sound.subtype in _LEFT_TO_FFMPEG:
            raise UndecodableError(f"libsndfile does not find the end of {sound.subtype} audio")
        yield sound


def num_frames(sound: soundfile.SoundFile) -> int:
    """Return the number of frames given by the header; 0 if it gives no length."""
    return int(sound.frames) if sound.frames < NO_LENGTH else 0


def is_float(sound: soundfile.SoundFile) -> bool:
    """Return whether samples are stored as floating point, which may exceed full scale."""
    return sound.subtype in ("FLOAT", "DOUBLE")


def blocks(
    sound: soundfile.SoundFile, first: int, end: int | None, mono: Downmix
) -> Iterator[Tensor]:
    """Decode frames ``first`` to ``end`` to mono blocks, (L,) int16 or float32.

    Args:
        sound: a newly opened file.
        first: first frame.
        end: frame after the last one; ``None`` reads to the end. Fewer are yielded if the file ends
            earlier.
        mono: averages the channels.

    Raises:
        soundfile.LibsndfileError: the file cannot be decoded.
    """
    dtype = "int16" if sound.subtype == "PCM_16" else "float32"
    if sound.seekable():
        sound.seek(min(first, sound.frames))
    else:
        while first > 0:
            skipped = len(sound.read(min(first, _BLOCK), dtype=dtype, always_2d=True))
            if not skipped:
                return
            first, end = first - skipped, None if end is None else end - skipped
    while end is None or first < end:
        wanted = _BLOCK if end is None else min(_BLOCK, end - first)
        frames = sound.read(wanted, dtype=dtype, always_2d=True)
        if len(frames):
            yield mono(torch.from_numpy(frames))
        if len(frames) < wanted:
            break
        first += wanted
    mono.check()
