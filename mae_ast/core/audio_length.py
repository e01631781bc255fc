"""Find the length of an audio file: by its header where that is right, else by decoding."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import av
import soundfile

from mae_ast.core import audio_seek, audio_soundfile
from mae_ast.core.audio_file import AudioFile
from mae_ast.core.audio_flac import flac_is_joined, flac_length
from mae_ast.core.audio_headers import mp3_header, ogg_links, wav_goes_on

_NEAR_END_S = 1  # seconds before the header's end that decoding begins at, to see where it ends
_SLACK_S = 0.1  # seconds that a header may be off: encoder padding, milliseconds, other tracks


@dataclass(frozen=True)
class AudioInfo:
    """Length and sample rate of a file.

    Args:
        num_frames: samples of one channel that decode, at ``sample_rate``; of lossy codecs it may
            be off by one packet.
        sample_rate: the file's own rate, in Hz.
        note: what is wrong with the length in its header; ``None``: nothing.
    """

    num_frames: int
    sample_rate: int
    note: str | None = None


def is_whole(file: AudioFile, sound: soundfile.SoundFile) -> bool:
    """Whether libsndfile reads a file to its end: it stops where the header says."""
    frames = audio_soundfile.num_frames(sound)
    if file.content.name == "FLAC":
        return frames > 0 and flac_length(file) == frames and not flac_is_joined(file)
    if file.content.name == "WAV":
        return not wav_goes_on(file)
    return frames > 0


def length_by_soundfile(file: AudioFile) -> AudioInfo:
    """Return the length by the header, or what FFmpeg decodes where that is not right.

    Raises:
        soundfile.LibsndfileError: libsndfile cannot read it.
        AudioError, UndecodableError, av.FFmpegError: its header is not right, and FFmpeg cannot
            decode it.
    """
    with audio_soundfile.opened(file) as sound:
        frames, rate = audio_soundfile.num_frames(sound), int(sound.samplerate)
        if is_whole(file, sound) and (file.content.name != "FLAC" or _ends_whole(sound)):
            return AudioInfo(frames, rate)
    return _noted(measure(file), rate, Fraction(frames, rate))


def _ends_whole(sound: soundfile.SoundFile) -> bool:
    """Whether the last frame decodes: a file that was cut may still have the beginning of it."""
    try:
        sound.seek(sound.frames - 1)
        return len(sound.read(1)) == 1
    except soundfile.LibsndfileError:
        return False


def lengths_of_links(file: AudioFile) -> list[tuple[AudioFile, AudioInfo]]:
    """Return the files that a chained Ogg file was joined of, and their lengths; empty: it is one.

    Raises:
        AudioError, UndecodableError, av.FFmpegError: as :func:`length_by_av`.
    """
    if file.content.name != "Ogg":
        return []
    return [(link, length_by_av(link)) for link in ogg_links(file)]


def length_by_av(file: AudioFile) -> AudioInfo:
    """Return the length of what FFmpeg decodes.

    That of a chained file is given at the sample rate of its first part.

    Raises:
        AudioError: it has no audio stream.
        UndecodableError, av.FFmpegError: FFmpeg cannot read it.
    """
    links = lengths_of_links(file)
    if links:
        first = links[0][1]
        seconds = sum(Fraction(link.num_frames, link.sample_rate) for _, link in links)
        frames = round(seconds * first.sample_rate)
        return _noted(frames, first.sample_rate, Fraction(first.num_frames, first.sample_rate))
    header = mp3_header(file) if file.content.name == "MPEG audio" else None
    if header is not None and header.is_right:
        return AudioInfo(header.num_frames, header.sample_rate)
    with audio_seek.started(file) as opened:
        container, stream = opened.stream.container, opened.stream
        promised = Fraction(container.duration or 0, av.time_base)
        if stream.audio.duration is not None:
            promised = stream.audio.duration * stream.time_base
        is_indexed = container.format.name in audio_seek.INDEXED
        # Where it is no index that tells, FFmpeg may have estimated from the bit rate.
        word = "header says" if is_indexed else "expected"
        at_end = audio_seek.end_after(opened, promised - _NEAR_END_S) if is_indexed else None
        rate = opened.rate
    if header is not None:
        promised, word = Fraction(header.num_frames, header.sample_rate), "header says"
    return _noted(measure(file) if at_end is None else at_end, rate, promised, word)


def _noted(frames: int, rate: int, promised: Fraction, word: str = "header says") -> AudioInfo:
    seconds = frames / rate
    if abs(seconds - float(promised)) <= _SLACK_S:
        return AudioInfo(frames, rate)
    said = f"{word} {float(promised):.3f} s" if promised > 0 else "no length in its header"
    return AudioInfo(frames, rate, f"{said}, {seconds:.3f} s decode")


def measure(file: AudioFile) -> int:
    """Count the samples of one channel that FFmpeg decodes of the whole file."""
    with audio_seek.started(file) as opened:
        end = 0
        for place, block in opened.located():
            end = place + len(block[0])
        return end
