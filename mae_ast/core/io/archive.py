"""Read files inside uncompressed archives, addressed as ``archive:offset:length``, as in fairseq.

``offset`` and ``length`` give the position and size of the file's content in bytes. The archive may
be a tar written by :mod:`mae_ast.prepare.pack`, any other uncompressed tar (for example a
WebDataset shard), or a zip without compression. Reading a clip takes one contiguous read of
typically 100 kB or more, so clips are read in batch order, at random over all shards; sorting them
would not be faster.

The archive may be a tar on a server, ``https://HOST/train-00000.tar:offset:length``. It is fetched
as a whole into a local cache (:mod:`mae_ast.core.io.remote.cache`) and read there.

A tar stores a 512-byte header with name and length before each file's content. Tars written by this
package also store the CRC-32 of the content in a pax record, because no decoder detects damage in a
WAV file.
"""

from __future__ import annotations

import io
import os
import re
import stat
import tarfile
import zlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import BinaryIO, NamedTuple, cast

from mae_ast.core.io.remote.cache import open_shard
from mae_ast.core.io.remote.urls import SCHEMES, is_url, name_of, unsupported_scheme
from mae_ast.core.io.section import Section

BLOCK = tarfile.BLOCKSIZE  # bytes; a tar consists of blocks of this size
END = bytes(2 * BLOCK)  # end-of-archive marker of a tar
TAR_SUFFIX = ".tar"

_MAX_OPEN = 256  # archives kept open per process
_IN_MEMORY_BYTES = 4 * 2**20  # files up to this size are read at once, longer ones on demand
_CHUNK_BYTES = 2**16  # read at a time from longer files
_MAX_HEADER_BYTES = 3 * BLOCK  # a file's header, and the end of a pax header before it
_NAME_BYTES = 100  # size of the name field in a header; longer names are truncated

_PATH = re.compile(r"(.+):(\d{1,18}):(\d{1,18})", re.DOTALL)
_CHECKSUM = "MAE_AST.crc32"
# The last record of a pax header with its padding; the record before it may be the path.
_RECORDS = re.compile(
    rb"(?: path=([^\n]+)\n)?\d+ " + re.escape(_CHECKSUM).encode() + rb"=([0-9a-f]{8})\n\0*\Z"
)


class ArchiveError(ValueError):
    """The archive is damaged, or is not the one that the manifest describes."""


class Member(NamedTuple):
    """Location of a file inside an archive.

    Args:
        archive: path or URL of the archive.
        offset: start of the file's content, in bytes.
        length: size of the content, in bytes.
    """

    archive: str
    offset: int
    length: int

    @classmethod
    def parse(cls, path: str) -> Member | None:
        """Parse ``archive:offset:length``; return ``None`` for the path of a loose file."""
        match = _PATH.fullmatch(path)
        return cls(match[1], int(match[2]), int(match[3])) if match is not None else None

    def __str__(self) -> str:
        return f"{self.archive}:{self.offset}:{self.length}"


class OpenMember(NamedTuple):
    """An open file inside an archive.

    Args:
        suffix: suffix of its name, such as ``.flac``; derived from the content if the name is
            unknown.
        path: its name inside the archive, or an empty string if unknown.
        file: its content, seekable.
        crc32: checksum recorded in the archive; ``None`` if there is none.
    """

    suffix: str
    path: str
    file: BinaryIO
    crc32: int | None


def open_member(member: Member) -> OpenMember:
    """Open a file inside an archive.

    A file of up to 4 MiB is read at once and verified against its checksum, if there is one. Longer
    files are read on demand and not verified; use :func:`check_member` for that.

    Raises:
        FileNotFoundError: the archive does not exist.
        ArchiveError: the archive is damaged, or the manifest belongs to another archive.
        RemoteError: the archive cannot be fetched.
        OSError: the archive cannot be read.
    """
    # Opened each time: the cache of remote shards could not free the room of a removed one that
    # stays open.
    archive = _Archive(member.archive) if is_url(member.archive) else _open_archive(member.archive)
    begin = max(0, member.offset - _MAX_HEADER_BYTES)
    num_bytes = member.length if member.length <= _IN_MEMORY_BYTES else _CHUNK_BYTES
    block = memoryview(archive.read(begin, member.offset + num_bytes - begin))
    before, content = bytes(block[: member.offset - begin]), block[member.offset - begin :]
    is_tar = _file_name(member.archive).lower().endswith(TAR_SUFFIX)
    suffix, path, crc32 = _parse_header(before, member) if is_tar else (None, "", None)
    if suffix is None:
        suffix = _suffix_of(bytes(content[:64]))
    if member.length > _IN_MEMORY_BYTES:
        section = Section(archive.read, member.offset, member.length, f"member{suffix}")
        stretch = cast(BinaryIO, io.BufferedReader(section, _CHUNK_BYTES))
        return OpenMember(suffix, path, stretch, crc32)
    if crc32 is not None and zlib.crc32(content) != crc32:
        raise ArchiveError(f"{path}: is damaged; its content does not match its checksum")
    return OpenMember(suffix, path, _InMemoryFile(content, suffix), crc32)


def check_member(member: Member) -> bool:
    """Verify a file of any length against its checksum; return ``False`` if it has none.

    Raises:
        FileNotFoundError, ArchiveError, RemoteError, OSError: see :func:`open_member`.
    """
    opened = open_member(member)
    if member.length > _IN_MEMORY_BYTES and opened.crc32 is not None:
        crc32 = 0
        while piece := opened.file.read(_IN_MEMORY_BYTES):
            crc32 = zlib.crc32(piece, crc32)
        if crc32 != opened.crc32:
            raise ArchiveError(
                f"{opened.path}: is damaged; its content does not match its checksum"
            )
    return opened.crc32 is not None


def why_missing(path: str) -> str:
    """Return why a path of a manifest, loose or inside an archive, does not exist; '' if it does.

    Servers are not asked: of a URL, only its form is checked.

    Raises:
        OSError: the file system cannot be read.
    """
    member = Member.parse(path)
    if is_url(path):
        return "" if member is not None else "a URL must name a file in a tar, URL:offset:length"
    if scheme := unsupported_scheme(path):
        return f"{scheme}:// is not supported; expected one of {', '.join(SCHEMES)}"
    try:
        status = os.stat(path if member is None else member.archive)
        is_there = stat.S_ISREG(status.st_mode)
    except (FileNotFoundError, NotADirectoryError):
        is_there = False
    if not is_there:
        return "no such file" if member is None else "no such archive"
    if member is None or member.offset + member.length <= status.st_size:
        return ""
    return f"beyond the end of the archive ({status.st_size} bytes)"


def list_members(archive: str | os.PathLike[str]) -> Iterator[tuple[str, Member]]:
    """Yield names and locations of the files in a tar, from its headers.

    Raises:
        ArchiveError: not an uncompressed tar, or damaged; files before the damage are yielded.
        OSError: the tar cannot be read.
    """
    archive = os.fspath(archive)
    size = os.path.getsize(archive)
    try:
        with tarfile.open(archive, "r:") as tar:
            while (info := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # tarfile would keep them all
                if info.offset_data + info.size > size:
                    raise ArchiveError(f"{archive}: is truncated within {info.name}")
                if info.isreg() and not info.issparse():
                    yield info.name, Member(archive, info.offset_data, info.size)
            end = _Archive(archive).read(tar.offset, min(BLOCK, max(0, size - tar.offset)))
            if any(end):  # tarfile stops here without an error
                raise ArchiveError(f"{archive}: is damaged at byte {tar.offset}: no valid header")
    except tarfile.TarError as error:
        raise ArchiveError(
            f"{archive}: is not an uncompressed tar, or is damaged ({error})"
        ) from error


def tar_header(number: int, path: str, num_bytes: int, crc32: int) -> bytes:
    """Build the tar header of a file, with its checksum; its size does not depend on ``crc32``.

    Args:
        number: index of the file; with the suffix of ``path`` the name for readers without pax.
        path: name of the file in the archive.
        num_bytes: size of the content.
        crc32: CRC-32 of the content.
    """
    suffix = os.path.splitext(path)[1]
    info = tarfile.TarInfo(f"{number:09d}{suffix if suffix.isascii() and len(suffix) < 20 else ''}")
    info.size = num_bytes
    # The checksum comes last, where it is searched for. Without times and owners, packing again
    # gives identical bytes.
    info.pax_headers = {"path": path, _CHECKSUM: f"{crc32:08x}"}
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


class _Archive:
    """An open archive, read at explicit offsets so that threads and forks can share it."""

    _fd = -1

    def __init__(self, path: str) -> None:
        self.path = path
        if is_url(path):
            self._fd = open_shard(path)
            return
        try:
            self._fd = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            raise FileNotFoundError(f"{path}: no such archive") from None

    def read(self, offset: int, length: int) -> bytes:
        """Read exactly ``length`` bytes.

        Raises:
            ArchiveError: the archive ends earlier.
            OSError: the archive cannot be read.
        """
        block = os.pread(self._fd, length, offset)
        while len(block) < length:  # rare: reads beyond 2 GiB, or interrupted by a signal
            more = os.pread(self._fd, length - len(block), offset + len(block))
            if not more:
                raise ArchiveError(f"the archive ends after {offset + len(block)} bytes")
            block += more
        return block

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        # Readers may still use the archive after it leaves the cache; it is closed after the last.
        if self._fd >= 0:
            close(self._fd)


@lru_cache(maxsize=_MAX_OPEN)
def _open_archive(path: str) -> _Archive:
    return _Archive(path)


# Call after an archive was rewritten under its old name.
close_archives = _open_archive.cache_clear


def _file_name(archive: str) -> str:
    return name_of(archive) if is_url(archive) else archive


class _InMemoryFile(io.BytesIO):
    def __init__(self, content: memoryview, suffix: str) -> None:
        super().__init__(content)
        self.name = f"member{suffix}"  # FFmpeg uses the suffix as a hint


def _parse_header(before: bytes, member: Member) -> tuple[str | None, str, int | None]:
    """Return suffix, path and checksum; the suffix is ``None`` if the name was truncated."""
    try:
        info = tarfile.TarInfo.frombuf(before[-BLOCK:], "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise ArchiveError(f"no file at this offset, or its header is damaged ({error})") from error
    if info.size != member.length:
        raise ArchiveError(
            f"the file at this offset has {info.size} bytes; the manifest belongs to another "
            "archive"
        )
    is_truncated = before[-BLOCK + _NAME_BYTES - 1] != 0
    suffix = None if is_truncated else os.path.splitext(info.name)[1]
    records = _RECORDS.search(before[:-BLOCK])
    if records is None:
        return suffix, info.name, None
    path = os.fsdecode(records[1]) if records[1] else info.name
    return suffix, path, int(records[2], 16)


def _suffix_of(begin: bytes) -> str:
    """Derive the suffix from the first bytes of a format soundfile reads, or Opus; else ''."""
    if begin.startswith(b"OggS"):
        return ".opus" if b"OpusHead" in begin else ".ogg"
    if begin.startswith(b"fLaC"):
        return ".flac"
    if begin.startswith((b"RIFF", b"RIFX", b"RF64")) and begin[8:12] == b"WAVE":
        return ".wav"
    # Layer 0 would be AAC.
    is_mpeg = len(begin) > 1 and begin[0] == 0xFF and begin[1] & 0xE0 == 0xE0 and begin[1] & 0x06
    return ".mp3" if is_mpeg or begin.startswith(b"ID3") else ""
