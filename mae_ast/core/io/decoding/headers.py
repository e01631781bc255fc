"""Check the length in the header of WAV, MP3 and Ogg files against their size, in a few reads.

A recorder that streams or is interrupted leaves a length of 0 or an outdated one, and concatenated
files keep the header of the first. If a header is wrong, the length is measured by decoding.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from mae_ast.core.io.decoding.audio_file import AudioFile

# -- WAV ------------------------------------------------------------------------------------------

_CHUNK_NAME = re.compile(rb"[A-Za-z0-9 _-]{4}")
# Chunks that may follow the data; they are also recognised if the file is truncated within one.
_TAG_CHUNK = re.compile(rb"(?i)(LIST|id3 |bext|cue |smpl|inst|iXML|axml|_PMX|junk|FLLR|acid|cart)")
_MAX_TRAILING_BYTES = 1_024  # up to this many bytes after the last chunk are not audio
_ZERO_PROBES = 16  # positions checked for zeros, with which some programs pad a file


def wav_exceeds_header(file: AudioFile) -> bool:
    """Return whether a WAV file has audio beyond the end of its data chunk.

    The chunk's size is 0 or too small if the writer was interrupted before it updated the header.
    """
    order = "big" if file.read(0, 4) == b"RIFX" else "little"
    at = 12
    while at + 8 <= file.size:
        header = file.read(at, 8)
        size = int.from_bytes(header[4:], order)  # type: ignore[arg-type]
        if not _CHUNK_NAME.fullmatch(header[:4]):
            return False
        end = at + 8 + size
        if header[:4] == b"data":
            return (
                file.size - end > _MAX_TRAILING_BYTES
                and not any(_is_chunk(file, place, order) for place in (end, end + (size & 1)))
                and (size == 0 or not _is_zero(file, end))
            )
        at = end + (size & 1)
    return False


def _is_chunk(file: AudioFile, place: int, order: str) -> bool:
    """Return whether a chunk or an ID3v1 tag begins at a position."""
    header = file.read(place, 8)
    size = int.from_bytes(header[4:], order)  # type: ignore[arg-type]
    is_whole = _CHUNK_NAME.fullmatch(header[:4]) and place + 8 + size <= file.size + 1
    return bool(is_whole or _TAG_CHUNK.match(header) or header.startswith(b"TAG"))


def _is_zero(file: AudioFile, begin: int) -> bool:
    """Return whether the sampled bytes from a position to the end are all zero."""
    step = max(1, (file.size - begin) // _ZERO_PROBES)
    return not any(any(file.read(place, 64)) for place in range(begin, file.size, step))


# -- MP3 ------------------------------------------------------------------------------------------


class Mp3Header(NamedTuple):
    """Contents of the Xing or Info header of an MP3 file.

    Args:
        num_frames: samples per channel, without encoder delay and padding.
        sample_rate: sample rate in Hz.
        is_right: True if its byte count matches the size of the file.
    """

    num_frames: int
    sample_rate: int
    is_right: bool


_MP3_RATES = (44_100, 48_000, 32_000)
_MP3_FRAME = 1_441  # bytes by which the count may be too low: the frame of the header itself


def mp3_header(file: AudioFile) -> Mp3Header | None:
    """Read the Xing or Info header of an MP3 file; ``None`` if absent or not MPEG layer 3."""
    begin = 0
    head = file.read(0, 10)
    if head.startswith(b"ID3") and len(head) == 10:
        begin = 10 + sum((byte & 0x7F) << (21 - 7 * n) for n, byte in enumerate(head[6:]))
    frame = file.read(begin, 256)
    if len(frame) < 256 or frame[0] != 0xFF or frame[1] & 0xE6 != 0xE2 or frame[2] & 0x0C == 0x0C:
        return None
    version, is_mono = frame[1] >> 3 & 3, frame[3] >> 6 == 3  # 3: MPEG 1, 2: MPEG 2, 0: MPEG 2.5
    rate = _MP3_RATES[frame[2] >> 2 & 3] >> (0 if version == 3 else 1 if version == 2 else 2)
    at = 4 + ((17 if is_mono else 32) if version == 3 else (9 if is_mono else 17))
    flags = int.from_bytes(frame[at + 4 : at + 8], "big")
    if frame[at : at + 4] not in (b"Xing", b"Info") or flags & 3 != 3:
        return None
    frames, size = (int.from_bytes(frame[at + n : at + n + 4], "big") for n in (8, 12))
    lame = at + 16 + (100 if flags & 4 else 0) + (4 if flags & 8 else 0)
    delays = (
        int.from_bytes(frame[lame + 21 : lame + 24], "big") if frame[lame : lame + 1] > b" " else 0
    )
    length = frames * (1_152 if version == 3 else 576) - (delays >> 12) - (delays & 0xFFF)
    rest = file.size - begin - _size_of_tags(file)
    return Mp3Header(max(0, length), rate, 0 <= rest - size <= _MP3_FRAME)


def _size_of_tags(file: AudioFile) -> int:
    """Return the size in bytes of the ID3v1 and APE tags at the end of a file."""
    size = 128 if file.read(max(0, file.size - 128), 3) == b"TAG" else 0
    footer = file.read(max(0, file.size - size - 32), 32)
    if footer.startswith(b"APETAGEX"):
        size += int.from_bytes(footer[12:16], "little") + (32 if footer[23] & 0x80 else 0)
    return size


# -- Ogg ------------------------------------------------------------------------------------------

_PLACES = 8  # positions at which pages are searched for, besides the end
_WINDOW = 2**13  # bytes read at each position
_LARGEST_PAGE = 65_307  # bytes
_PAGE = re.compile(rb"OggS\0(?P<flags>[\0-\7]).{8}(?P<serial>.{4})(?P<number>.{4})", re.DOTALL)
_BEGINS_STREAM = 2  # flag of the first page of a stream
_PIECE = 2**22  # bytes searched at a time


def ogg_is_chained(file: AudioFile) -> bool:
    """Return whether an Ogg file is chained, that is, a concatenation of several files.

    Pages are sampled at a few positions. In a single file they belong to the streams that begin on
    its first pages, and their numbers increase; in a chained file the serial number changes or the
    page numbers restart.
    """
    numbers: dict[bytes, int] = {}  # serial number to the highest page number so far
    is_beginning = True  # multiplexed streams all begin before the first page of content
    step = max(_WINDOW, file.size // _PLACES)
    last = max(0, file.size - _LARGEST_PAGE)
    for place in (*range(0, last, step), last):
        found = list(_PAGE.finditer(file.read(place, _LARGEST_PAGE if place == last else _WINDOW)))
        for page in found[-1:] if place == last and place else found:
            serial, number = page["serial"], int.from_bytes(page["number"], "little")
            begins = page["flags"][0] & _BEGINS_STREAM
            if number < numbers.get(serial, 0) or (serial not in numbers and not begins):
                return True
            if begins and not is_beginning:
                return True
            is_beginning = bool(begins)
            numbers[serial] = number
    return False


def ogg_links(file: AudioFile) -> list[AudioFile]:
    """Return the links of a chained Ogg file; empty if it is not chained.

    The whole file is read only if it is chained, to find where each link begins.
    """
    if not ogg_is_chained(file):
        return []
    begins, was_begin = [], False
    for place in range(0, file.size, _PIECE):
        for page in _PAGE.finditer(file.read(place, _PIECE + 27)):
            if page.start() >= _PIECE:
                break
            is_begin = bool(page["flags"][0] & _BEGINS_STREAM)
            if is_begin and not was_begin:  # the first pages of multiplexed streams are adjacent
                begins.append(place + page.start())
            was_begin = is_begin
    if len(begins) < 2:  # for example a file that begins in the middle of a stream
        return []
    return [
        file.section(begin, end - begin)
        for begin, end in zip(begins, [*begins[1:], file.size], strict=True)
    ]
