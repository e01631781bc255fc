"""Find the length of an audio file from its header, or by decoding if the header is wrong."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import av
import soundfile

from mae_ast.core.io.decoding import ffmpeg, libsndfile
from mae_ast.core.io.decoding import seek as audio_seek
from mae_ast.core.io.decoding.audio_file import AudioError, AudioFile, UndecodableError
from mae_ast.core.io.decoding.flac import flac_is_joined, flac_length
from mae_ast.core.io.decoding.headers import mp3_header, ogg_links, wav_exceeds_header

_NEAR_END_S = 1  # to find the end, decoding starts this many seconds before the header's end
# FFmpeg's names of formats without a container, whose packets have exact durations.
_RAW = ("mp3", "aac")
_SLACK_S = 0.1  # tolerated error of a header: encoder padding, rounding to ms, other tracks


@dataclass(frozen=True)
class AudioInfo:
    """Length and sample rate of a file.

    Args:
        num_frames: decodable samples per channel, at ``sample_rate``; may be off by one packet for
            lossy codecs.
        sample_rate: the file's own sample rate, in Hz.
        note: description of a missing or wrong length in the header; ``None`` if it is correct.
    """

    num_frames: int
    sample_rate: int
    note: str | None = None

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return self.num_frames / self.sample_rate


class AudioHeader(NamedTuple):
    """Length and sample rate that a file's header gives, unlike :class:`AudioInfo` unverified.

    Args:
        seconds: length in seconds; 0 if it is not given.
        sample_rate: the file's own sample rate, in Hz.
    """

    seconds: Fraction
    sample_rate: int


def is_whole(file: AudioFile, sound: soundfile.SoundFile) -> bool:
    """Return whether libsndfile, which relies on the header's length, reads the whole file."""
    frames = libsndfile.num_frames(sound)
    if file.content.name == "FLAC":
        return frames > 0 and flac_length(file) == frames and not flac_is_joined(file)
    if file.content.name == "WAV":
        return not wav_exceeds_header(file)
    return frames > 0


def length_by_soundfile(file: AudioFile) -> AudioInfo:
    """Return the header's length if it is correct, else the length decoded by FFmpeg.

    Raises:
        soundfile.LibsndfileError: libsndfile cannot read the file.
        AudioError, UndecodableError, av.FFmpegError: the header is wrong, and FFmpeg cannot decode
            the file.
    """
    with libsndfile.opened(file) as sound:
        frames, rate = libsndfile.num_frames(sound), int(sound.samplerate)
        if is_whole(file, sound) and (file.content.name != "FLAC" or _ends_whole(sound)):
            return AudioInfo(frames, rate)
    return _info_with_note(measure(file), rate, Fraction(frames, rate))


def header_by_soundfile(file: AudioFile) -> AudioHeader:
    """Return the sample rate and the length that the header gives."""
    with libsndfile.opened(file) as sound:
        rate = int(sound.samplerate)
        return AudioHeader(Fraction(libsndfile.num_frames(sound), rate), rate)


def header_by_av(file: AudioFile) -> AudioHeader:
    """Return the sample rate and the length that the container gives, or that FFmpeg estimates."""
    with audio_seek.started(file) as opened:
        return AudioHeader(_container_duration(opened.stream)[0], opened.rate)


def _ends_whole(sound: soundfile.SoundFile) -> bool:
    """Return whether the last frame can be decoded; it may be incomplete in a truncated file."""
    try:
        sound.seek(sound.frames - 1)
        return len(sound.read(1)) == 1
    except soundfile.LibsndfileError:
        return False


def lengths_of_links(file: AudioFile) -> list[tuple[AudioFile, AudioInfo]]:
    """Return the links of a chained Ogg file and their lengths; empty if it is not chained.

    Links that cannot be read, such as a truncated last one, are skipped.
    """
    lengths = []
    for link in ogg_links(file) if file.content.name == "Ogg" else []:
        with suppress(AudioError, UndecodableError, av.FFmpegError):
            lengths.append((link, length_by_av(link)))
    return lengths


def length_by_av(file: AudioFile) -> AudioInfo:
    """Return the length of the audio that FFmpeg decodes.

    The length of a chained file is counted at the sample rate of its first link.

    Raises:
        AudioError: the file has no audio stream.
        UndecodableError, av.FFmpegError: FFmpeg cannot read the file.
    """
    links = lengths_of_links(file)
    if links:
        return _length_of_links([info for _, info in links])
    header = mp3_header(file) if file.content.name == "MPEG audio" else None
    if header is not None and header.is_right:
        return AudioInfo(header.num_frames, header.sample_rate)
    with audio_seek.started(file) as opened:
        name, rate = opened.stream.container.format.name, opened.rate
        expected, covers_all_streams = _container_duration(opened.stream)
        has_header = name in audio_seek.INDEXED
        frames = audio_seek.end_after(opened, expected - _NEAR_END_S) if has_header else None
    if header is not None:
        expected, has_header = Fraction(header.num_frames, header.sample_rate), True
    elif frames is None and name in _RAW:
        frames = _duration_of_packets(file, rate)
    if frames is None:
        frames = measure(file)
    if covers_all_streams and expected * rate >= frames:
        return AudioInfo(frames, rate)
    # Without a header, FFmpeg may have estimated the length from the bit rate.
    return _info_with_note(frames, rate, expected, "header says" if has_header else "expected")


def _length_of_links(links: list[AudioInfo]) -> AudioInfo:
    rate = links[0].sample_rate
    frames = round(sum(Fraction(link.num_frames, link.sample_rate) for link in links) * rate)
    return _info_with_note(frames, rate, Fraction(links[0].num_frames, rate))


def _container_duration(stream: ffmpeg.Stream) -> tuple[Fraction, bool]:
    """Return FFmpeg's duration in seconds, and whether it is that of the longest stream."""
    if stream.audio.duration is not None:
        return stream.audio.duration * stream.time_base, False
    duration = Fraction(stream.container.duration or 0, av.time_base)
    return duration, len(stream.container.streams) > 1


def _info_with_note(
    frames: int, rate: int, expected: Fraction, word: str = "header says"
) -> AudioInfo:
    seconds = frames / rate
    if abs(seconds - float(expected)) <= _SLACK_S:
        return AudioInfo(frames, rate)
    claim = f"{word} {float(expected):.3f} s" if expected > 0 else "no length in its header"
    return AudioInfo(frames, rate, f"{claim}, decoded {seconds:.3f} s")


def _duration_of_packets(file: AudioFile, rate: int) -> int | None:
    """Sum the durations of packets without decoding; ``None`` if a packet has no duration."""
    with ffmpeg.opened(file) as stream:
        durations = [packet.duration for packet in stream.demux() if packet.size]
        seconds = sum(filter(None, durations)) * stream.time_base
        return round(seconds * rate) if all(durations) else None


def measure(file: AudioFile) -> int:
    """Count the samples per channel that FFmpeg decodes from the whole file."""
    with audio_seek.started(file) as opened:
        end = 0
        for place, block in opened.located():
            end = place + len(block[0])
        return end
