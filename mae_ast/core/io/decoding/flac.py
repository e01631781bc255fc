"""Check the length in a FLAC header against the sample positions in the frame headers."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mae_ast.core.io.decoding.audio_file import AudioFile

_PLACES = 8  # positions at which frames are searched for, besides the end
_WINDOW = 2**14  # bytes read at each position, unless frames are longer
_TAIL = 2**16  # bytes read at the end, where tags may follow the last frame

_SYNC = re.compile(rb"\xff[\xf8\xf9]")
_LONGEST_HEADER = 16  # bytes
_BLOCK_SIZES = {
    1: 192,
    **{code: 576 << (code - 2) for code in range(2, 6)},
    **{code: 1 << code for code in range(8, 16)},
}


def flac_length(file: AudioFile) -> int:
    """Return the number of samples up to the end of a FLAC file's last frame; 0 without frames."""
    length = min(file.size, max(_TAIL, 2 * _longest_frame(file)))
    return max(_ends_of_frames(file, file.size - length, length), default=0)


def flac_is_joined(file: AudioFile) -> bool:
    """Return whether a FLAC file is a concatenation of several: its frame numbers restart."""
    window = max(_WINDOW, 2 * _longest_frame(file))
    before = 0
    for place in range(0, file.size, max(window, file.size // _PLACES)):
        end = next(_ends_of_frames(file, place, window), before)
        if end < before:
            return True
        before = end
    return False


def _longest_frame(file: AudioFile) -> int:
    return int.from_bytes(file.read(15, 3), "big")


def _ends_of_frames(file: AudioFile, place: int, length: int) -> Iterator[int]:
    """Yield the end position of each frame that begins in a byte range of the file."""
    block_size = int.from_bytes(file.read(10, 2), "big")
    content = file.read(place, length)
    for match in _SYNC.finditer(content):
        end = _end_of_frame(content[match.start() : match.start() + _LONGEST_HEADER], block_size)
        if end:
            yield end


def _end_of_frame(header: bytes, block_size: int) -> int:
    """Return the end position of a frame, in samples, from its header; 0 if it is invalid."""
    if len(header) < 6:
        return 0
    size_code, rate_code = header[2] >> 4, header[2] & 15
    ones = 8 - (header[4] ^ 0xFF).bit_length()
    if not size_code or rate_code == 15 or ones in (1, 8):
        return 0
    at = 4 + max(1, ones)  # after the number, which is coded like a UTF-8 character
    number = header[4] & (0x7F >> ones)
    for byte in header[5:at]:
        number = number << 6 | byte & 0x3F
    size_bytes = {6: 1, 7: 2}.get(size_code, 0)
    size = _BLOCK_SIZES.get(size_code) or 1 + int.from_bytes(header[at : at + size_bytes], "big")
    at += size_bytes + {12: 1, 13: 2, 14: 2}.get(rate_code, 0)
    if at >= len(header) or _crc8(header[:at]) != header[at]:
        return 0
    counts_samples = header[1] & 1
    return (number if counts_samples else number * block_size) + size


def _crc8(data: bytes) -> int:
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc << 1 ^ (0x107 if crc & 0x80 else 0)) & 0xFF
    return crc
