"""Files within uncompressed archives, named ``archive:offset:length`` as fairseq names them.

``offset`` and ``length`` are bytes of the file's content, wherever that lies: in a tar of
:mod:`mae_ast.prepare.pack`, in a tar that others made (WebDataset's, say), in a zip that only
stores. A clip is one read of one stretch, of 100 kB and more. So clips are read in the order of
their
batch, at random over all shards: to sort them would save nothing.

Before a file's content a tar has a header of 512 bytes, with name and length. Ours have a record
of the pax format besides, the CRC-32 of the content: of wav, no decoder would notice damage.
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

from mae_ast.core.io.section import Section

BLOCK = tarfile.BLOCKSIZE  # bytes; a tar is made of such
END = bytes(2 * BLOCK)  # of a tar
TAR_SUFFIX = ".tar"

_MAX_OPEN = 256  # archives that a process keeps open
_WHOLE = 4 * 2**20  # bytes; of longer files only the parts are read that a decoder asks for
_PIECE = 2**16  # bytes; what is read at a time of those
_BEFORE = 3 * BLOCK  # of a file's content: its header, and the end of a pax header before that
_NAME_BYTES = 100  # room for a name in a header; a longer one is cut there

_PATH = re.compile(r"(.+):(\d{1,18}):(\d{1,18})", re.DOTALL)
_CHECKSUM = "MAE_AST.crc32"
# The last record of a pax header and what fills its block; the path may be the record before.
_RECORDS = re.compile(
    rb"(?: path=([^\n]+)\n)?\d+ " + re.escape(_CHECKSUM).encode() + rb"=([0-9a-f]{8})\n\0*\Z"
)


class ArchiveError(ValueError):
    """An archive that is damaged, or is not the one that it should be."""


class Member(NamedTuple):
    """Where a file lies within an archive.

    Args:
        archive: its path.
        offset: of the file's content, in bytes.
        length: of the content, in bytes.
    """

    archive: str
    offset: int
    length: int

    @classmethod
    def parse(cls, path: str) -> Member | None:
        """``archive:offset:length``; ``None`` for the path of a loose file."""
        match = _PATH.fullmatch(path)
        return cls(match[1], int(match[2]), int(match[3])) if match is not None else None

    def __str__(self) -> str:
        return f"{self.archive}:{self.offset}:{self.length}"


class OpenMember(NamedTuple):
    """A file within an archive, ready to be read.

    Args:
        suffix: of its name, such as ``.flac``; from its content where the name is not known.
        path: its name, as far as that is known.
        file: its content; can seek.
        crc32: what the archive says that the content has; ``None``: it does not say.
    """

    suffix: str
    path: str
    file: BinaryIO
    crc32: int | None


def open_member(member: Member) -> OpenMember:
    """Open a file within an archive.

    Up to 4 MiB it is read at once, and checked where there is a checksum. Of a longer one only
    what is asked for is read; :func:`check_member` checks those too.

    Raises:
        FileNotFoundError: there is no such archive.
        ArchiveError: it is damaged, or the manifest is of another one.
        OSError: it cannot be read.
    """
    archive = _opened(member.archive)
    begin = max(0, member.offset - _BEFORE)
    at_once = member.length if member.length <= _WHOLE else _PIECE
    block = memoryview(archive.read(begin, member.offset + at_once - begin))
    before, content = bytes(block[: member.offset - begin]), block[member.offset - begin :]
    is_tar = member.archive.lower().endswith(TAR_SUFFIX)
    suffix, path, crc32 = _parse_header(before, member) if is_tar else (None, "", None)
    if suffix is None:
        suffix = _suffix_of(bytes(content[:64]))
    if member.length > _WHOLE:
        section = Section(archive.read, member.offset, member.length, f"member{suffix}")
        stretch = cast(BinaryIO, io.BufferedReader(section, _PIECE))
        return OpenMember(suffix, path, stretch, crc32)
    if crc32 is not None and zlib.crc32(content) != crc32:
        raise ArchiveError(f"{path}: its bytes are damaged; they do not match its checksum")
    return OpenMember(suffix, path, _Whole(content, suffix), crc32)


def check_member(member: Member) -> bool:
    """Compare a file with its checksum, however long it is; ``False``: there is none.

    Raises:
        FileNotFoundError, ArchiveError, OSError: as :func:`open_member`.
    """
    opened = open_member(member)
    if member.length > _WHOLE and opened.crc32 is not None:
        crc32 = 0
        while piece := opened.file.read(_WHOLE):
            crc32 = zlib.crc32(piece, crc32)
        if crc32 != opened.crc32:
            raise ArchiveError(
                f"{opened.path}: its bytes are damaged; they do not match its checksum"
            )
    return opened.crc32 is not None


def why_missing(path: str) -> str:
    """Return why a manifest's path, loose or within an archive, does not exist; '' if it does.

    Raises:
        OSError: the file system cannot tell.
    """
    member = Member.parse(path)
    try:
        status = os.stat(path if member is None else member.archive)
        is_there = stat.S_ISREG(status.st_mode)
    except (FileNotFoundError, NotADirectoryError):
        is_there = False
    if not is_there:
        return "no such file" if member is None else "no such archive"
    if member is None or member.offset + member.length <= status.st_size:
        return ""
    return f"the archive ends before that, after {status.st_size} bytes"


def list_members(archive: str | os.PathLike[str]) -> Iterator[tuple[str, Member]]:
    """Names and places of the files in a tar, from its headers.

    Raises:
        ArchiveError: it is no uncompressed tar, or damaged; those before the damage came first.
        OSError: it cannot be read.
    """
    archive = os.fspath(archive)
    size = os.path.getsize(archive)
    try:
        with tarfile.open(archive, "r:") as tar:
            while (info := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # it would hold them all
                if info.offset_data + info.size > size:
                    raise ArchiveError(f"{archive}: is cut short within {info.name}")
                if info.isreg() and not info.issparse():
                    yield info.name, Member(archive, info.offset_data, info.size)
            end = _Archive(archive).read(tar.offset, min(BLOCK, max(0, size - tar.offset)))
            if any(end):  # here the module stops without a word
                raise ArchiveError(f"{archive}: is damaged at byte {tar.offset}, where a file ends")
    except tarfile.TarError as error:
        raise ArchiveError(f"{archive}: is no uncompressed tar, or damaged ({error})") from error


def tar_header(number: int, path: str, num_bytes: int, crc32: int) -> bytes:
    """Make the header of a file in a tar of ours; its size does not depend on ``crc32``.

    Args:
        number: of the file; with the suffix of ``path`` its name for readers without pax.
        path: its name.
        num_bytes: its size.
        crc32: of its content.
    """
    suffix = os.path.splitext(path)[1]
    info = tarfile.TarInfo(f"{number:09d}{suffix if suffix.isascii() and len(suffix) < 20 else ''}")
    info.size = num_bytes
    # The checksum last, where it is looked for. No times or owners: the same again is the same.
    info.pax_headers = {"path": path, _CHECKSUM: f"{crc32:08x}"}
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


class _Archive:
    """An open archive that is read at positions, so that threads and forks do not meet."""

    _fd = -1

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            raise FileNotFoundError(f"{path}: no such archive") from None

    def read(self, offset: int, length: int) -> bytes:
        """All of a stretch.

        Raises:
            ArchiveError: the archive ends before it.
            OSError: it cannot be read.
        """
        block = os.pread(self._fd, length, offset)
        while len(block) < length:  # seldom: 2 GiB, or a signal
            more = os.pread(self._fd, length - len(block), offset + len(block))
            if not more:
                raise ArchiveError(f"the archive ends after {offset + len(block)} bytes")
            block += more
        return block

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        # Closed once nobody reads any more, which is later than when it leaves the cache.
        if self._fd >= 0:
            close(self._fd)


@lru_cache(maxsize=_MAX_OPEN)
def _opened(path: str) -> _Archive:
    return _Archive(path)


# For one that is written anew under its old name.
close_archives = _opened.cache_clear


class _Whole(io.BytesIO):
    def __init__(self, content: memoryview, suffix: str) -> None:
        super().__init__(content)
        self.name = f"member{suffix}"  # a hint to FFmpeg


def _parse_header(before: bytes, member: Member) -> tuple[str | None, str, int | None]:
    """Suffix, path and checksum; a name that was cut has no suffix to tell."""
    try:
        info = tarfile.TarInfo.frombuf(before[-BLOCK:], "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise ArchiveError(f"no file begins there, or its header is damaged ({error})") from error
    if info.size != member.length:
        raise ArchiveError(
            f"the file that begins there has {info.size} bytes; the manifest is of another archive"
        )
    is_cut = before[-BLOCK + _NAME_BYTES - 1] != 0
    suffix = None if is_cut else os.path.splitext(info.name)[1]
    records = _RECORDS.search(before[:-BLOCK])
    if records is None:
        return suffix, info.name, None
    path = os.fsdecode(records[1]) if records[1] else info.name
    return suffix, path, int(records[2], 16)


def _suffix_of(begin: bytes) -> str:
    """From a file's first bytes, for those that soundfile is to read, and Opus; else empty."""
    if begin.startswith(b"OggS"):
        return ".opus" if b"OpusHead" in begin else ".ogg"
    if begin.startswith(b"fLaC"):
        return ".flac"
    if begin.startswith((b"RIFF", b"RIFX", b"RF64")) and begin[8:12] == b"WAVE":
        return ".wav"
    # Layer 0 would be AAC's.
    is_mpeg = len(begin) > 1 and begin[0] == 0xFF and begin[1] & 0xE0 == 0xE0 and begin[1] & 0x06
    return ".mp3" if is_mpeg or begin.startswith(b"ID3") else ""
