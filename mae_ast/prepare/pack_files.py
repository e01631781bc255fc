"""Prepare files for a shard, unchanged or transcoded to FLAC, in constant memory."""

from __future__ import annotations

import hashlib
import os
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

import soundfile
from torch import Tensor

from mae_ast.core.io.archive import ArchiveError, Member, open_member
from mae_ast.core.io.audio import SAMPLE_RATE, AudioError
from mae_ast.core.io.retry import retried
from mae_ast.core.io.segment import Segment, stream_segment
from mae_ast.prepare.shard_writer import PackedFile

_PIECE = 4 * 2**20  # bytes; longer files are read in pieces of this size


class _Source(NamedTuple):
    """A file to pack.

    Args:
        name: name inside the shard.
        num_bytes: size of the file.
        crc32: checksum recorded in the archive that contains it; ``None`` if there is none.
    """

    name: str
    num_bytes: int
    crc32: int | None


def copied(path: str, row_path: str, length: int, sample_rate: int) -> PackedFile:
    """Prepare an unchanged copy of a file; a file of up to 4 MiB is read at once.

    Args:
        path: path of the file, loose or inside an archive.
        row_path: path of the file as written in its manifest.
        length: number of samples at its own rate.
        sample_rate: sample rate in Hz.

    Raises:
        FileNotFoundError, ArchiveError, OSError: the file cannot be read; the latter two may also
            be raised when its pieces are read.
    """
    source = _find(path, row_path)
    pieces = _pieces(path, source)
    if source.num_bytes <= _PIECE:
        pieces = iter(list(pieces))
    return PackedFile(source.name, pieces, source.num_bytes, length, sample_rate)


def transcoded(segment: Segment, row_path: str, limits: str, folder: Path) -> PackedFile:
    """Prepare a file or a part of one, transcoded to FLAC at 16 kHz, mono, 16 bits.

    Args:
        segment: the file, loose or inside an archive, or the part of it.
        row_path: path of the file as written in its manifest.
        limits: added to the name of the file; distinguishes the segments of one file.
        folder: folder for an unnamed temporary file, used if the result is long.

    Raises:
        FileNotFoundError, ArchiveError, AudioError: the file cannot be decoded.
        OSError: the file cannot be read, or the temporary file cannot be written.
    """
    name = f"{os.path.splitext(_find(segment.path, row_path).name)[0]}{limits}.flac"
    spool = _Spool(folder)

    def encode(blocks: Iterator[Tensor]) -> int:
        spool.clear()
        num_samples = 0
        with soundfile.SoundFile(spool, "w", SAMPLE_RATE, 1, "PCM_16", format="FLAC") as flac:
            for block in blocks:
                flac.write(block.numpy())
                num_samples += len(block)
        return num_samples

    try:
        length = stream_segment(segment, encode)
    except AudioError:
        spool.check()  # a full disk, not a bad file
        raise
    spool.check()
    num_bytes = spool.seek(0, os.SEEK_END)
    return PackedFile(name, spool.pieces(), num_bytes, length, SAMPLE_RATE)


def decoded_digest(segment: Segment) -> bytes:
    """Decode a file or a part of one and return the SHA-256 of its samples at 16 kHz.

    Raises:
        FileNotFoundError, AudioError: the file cannot be decoded.
    """

    def digest(blocks: Iterator[Tensor]) -> bytes:
        value = hashlib.sha256()
        for block in blocks:
            value.update(block.numpy().tobytes())
        return value.digest()

    return stream_segment(segment, digest)


@retried
def _find(path: str, row_path: str) -> _Source:
    member, name, crc32 = Member.parse(path), row_path, None
    if member is None:
        num_bytes = os.stat(path).st_size
    else:
        suffix, name, file, crc32 = open_member(member)
        file.close()
        num_bytes = member.length
        if not name.endswith(suffix):
            name += suffix
    return _Source(os.path.normpath(f"/{name}").lstrip("/"), num_bytes, crc32)


def _pieces(path: str, source: _Source) -> Iterator[bytes]:
    crc32 = 0
    for place in range(0, source.num_bytes, _PIECE):
        piece = _read_piece(path, place)
        crc32 = zlib.crc32(piece, crc32)
        yield piece
    if source.crc32 not in (None, crc32):
        raise ArchiveError(f"{source.name}: is damaged; its content does not match its checksum")


@retried
def _read_piece(path: str, place: int) -> bytes:
    member = Member.parse(path)
    with open(path, "rb") if member is None else open_member(member).file as file:
        file.seek(place)
        return file.read(_PIECE)


class _Spool:
    """Temporary file for libsndfile that records write errors, which libsndfile would discard.

    Args:
        folder: folder of the file once it is too long for memory.
    """

    def __init__(self, folder: Path) -> None:
        self._file: IO[bytes] = tempfile.SpooledTemporaryFile(_PIECE, dir=str(folder))  # noqa: SIM115
        self._folder = folder
        self._error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self._error = error
            return 0

    def read(self, num_bytes: int = -1) -> bytes:
        return self._file.read(num_bytes)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def clear(self) -> None:
        """Remove all content."""
        self._file.seek(0)
        self._file.truncate()

    def check(self) -> None:
        """Raise the error of an earlier write, if any."""
        try:
            self._file.flush()
        except OSError as error:
            self._error = error
        if self._error is not None:
            raise OSError(
                f"{self._folder}: could not be written ({self._error.strerror}); with more disk "
                "space, the same command resumes"
            ) from self._error

    def pieces(self) -> Iterator[bytes]:
        """Yield the content, once."""
        with self._file as file:
            file.seek(0)
            while piece := file.read(_PIECE):
                yield piece
