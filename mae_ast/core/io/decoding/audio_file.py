"""Open audio files for random access, and recognise their format by their first bytes.

A file's content determines its decoder; the suffix is only a hint for FFmpeg.
"""

from __future__ import annotations

import io
import logging
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, NamedTuple, cast

from mae_ast.core.io.archive import Member, open_member
from mae_ast.core.io.section import Section

logger = logging.getLogger(__name__)

HEAD_BYTES = 64  # read from a file to recognise its content

_SECTION_BUFFER = 2**16  # bytes

_warned: set[str] = set()  # paths for which a warning was already logged


class AudioError(ValueError):
    """The file contains no usable audio; the message gives the file and the reason."""


class UndecodableError(Exception):
    """A decoder cannot read a file, or not all of it; another decoder may."""


def warn_once(path: str, message: str) -> None:
    """Log a warning about a file, at most once per file."""
    if path not in _warned:
        _warned.add(path)
        logger.warning("%s: %s", path, message)


class Content(NamedTuple):
    """Format of a file, recognised by its content.

    Args:
        name: name of the format, for messages; empty if unknown.
        by_soundfile: True if libsndfile decodes it first, False if FFmpeg does.
    """

    name: str
    by_soundfile: bool


_BY_SOUNDFILE = {  # libsndfile seeks sample-exactly in these formats
    "FLAC": rb"fLaC",
    "WAV": rb"(RIFF|RIFX|RF64)....WAVE",
    "AIFF": rb"FORM....AIF[FC]",
    "AU": rb"\.snd|dns\.",
    "W64": rb"riff\x2e\x91\xcf\x11",
    "CAF": rb"caff",
    "NIST SPHERE": rb"NIST_1A",
    "VOC": rb"Creative Voice File",
    "SVX": rb"FORM....(8SVX|16SV)",
    "IRCAM": rb"\x64\xa3[\x01-\x04]\0|\0[\x01-\x04]\xa3\x64",
    "PAF": rb" paf|fap ",
    "PVF": rb"PVF1\n",
    "MATLAB": rb"MATLAB ",
    "XI": rb"Extended Instrument",
    "AVR": rb"2BIT",
    "Psion WVE": rb"ALawSoundFile",
    "MPC 2000": rb"\x01\x04",
}
_BY_FFMPEG = {
    "Ogg": rb"OggS",
    "Matroska or WebM": rb"\x1a\x45\xdf\xa3",
    "MP4 or QuickTime": rb"....(ftyp|moov|mdat|wide|free|skip)",
    "MPEG audio": rb"ID3|\xff[\xe2-\xe7\xf2-\xf7\xfa-\xff]",
    "raw AAC": rb"\xff[\xf0\xf1\xf8\xf9]",
    "AC-3": rb"\x0b\x77",
    "AVI": rb"RIFF....AVI ",
    "FLV": rb"FLV\x01",
    "ASF (WMA)": rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11",
    "AMR": rb"#!AMR",
    "WavPack": rb"wvpk",
    "TTA": rb"TTA1",
    # not audio; named in the error message
    "an HTML page": rb"\s*<(?i:!doctype html|html)",
    "a Git LFS pointer": rb"version https://git-lfs",
    "a zip archive": rb"PK\x03\x04",
    "gzip data": rb"\x1f\x8b",
    "a PDF": rb"%PDF",
    "an image": rb"\x89PNG|\xff\xd8\xff",
    "zero bytes": rb"\0{64}",
}
_PATTERNS = tuple(
    (re.compile(magic, re.DOTALL), Content(name, kinds is _BY_SOUNDFILE))
    for kinds in (_BY_SOUNDFILE, _BY_FFMPEG)
    for name, magic in kinds.items()
)
_UNKNOWN = Content("", True)  # libsndfile accepts fewer files that are not audio than FFmpeg


def recognise(head: bytes) -> Content:
    """Recognise the format of a file from its first ``HEAD_BYTES`` bytes."""
    return next((content for magic, content in _PATTERNS if magic.match(head)), _UNKNOWN)


class AudioFile:
    """A file that is open for reading, loose or inside an archive.

    Args:
        path: path of the file, for messages.
        size: size in bytes.
        handle: file descriptor of a loose file, or file object of a file inside an archive.
    """

    def __init__(self, path: str, size: int, handle: int | BinaryIO) -> None:
        self.path = path
        self.size = size
        self._handle = handle
        self.content = recognise(self.read(0, HEAD_BYTES))

    @property
    def suffix(self) -> str:
        """Suffix of its name; for a file inside an archive, of its name there."""
        name = self.path if isinstance(self._handle, int) else getattr(self._handle, "name", "")
        return os.path.splitext(name)[1]

    def read(self, offset: int, length: int) -> bytes:
        """Read ``length`` bytes at ``offset``; fewer at the end of the file."""
        if isinstance(self._handle, int):
            return os.pread(self._handle, length, offset)
        self._handle.seek(offset)
        return self._handle.read(length)

    def section(self, offset: int, length: int) -> AudioFile:
        """Return a byte range as a file of its own, readable while this one is open."""
        content = io.BufferedReader(self._section(offset, length), _SECTION_BUFFER)
        return AudioFile(self.path, length, cast(BinaryIO, content))

    def for_soundfile(self) -> int | str | BinaryIO:
        """Return an argument for ``soundfile.SoundFile``, positioned at the start of the file."""
        if not isinstance(self._handle, int):
            return self._content()
        if self.path.lower().endswith(".sd2"):
            return self.path  # the header of an SD2 file is in a second file
        os.lseek(self._handle, 0, os.SEEK_SET)
        return self._handle

    def for_av(self) -> BinaryIO:
        """Return an argument for ``av.open``, positioned at the start of the file.

        Loose files are also read in Python: FFmpeg reports damaged data as an I/O error, and treats
        an error of the file system as the end of the file.
        """
        return self._content()

    def _content(self) -> BinaryIO:
        """Return the content with its own position, so that :meth:`read` may be used meanwhile."""
        return cast(BinaryIO, self._section(0, self.size))

    def _section(self, offset: int, length: int) -> Section:
        return Section(self.read, offset, length, f"section{self.suffix}")


@contextmanager
def open_audio(path: str) -> Iterator[AudioFile]:
    """Open the file at an absolute path, also ``archive:offset:length``.

    Raises:
        FileNotFoundError: the file does not exist.
        AudioError: the file is empty.
        ArchiveError, OSError: the file cannot be read.
    """
    member = Member.parse(path)
    if member is not None:
        if member.length == 0:
            raise AudioError(f"{path}: is empty (0 bytes)")
        yield AudioFile(path, member.length, open_member(member).file)
        return
    size = _size_of_file(path)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield AudioFile(path, size, descriptor)
    finally:
        os.close(descriptor)


def _size_of_file(path: str) -> int:
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{path}: no such audio file") from None
    if not stat.S_ISREG(status.st_mode):
        raise FileNotFoundError(f"{path}: no such audio file")
    if status.st_size == 0:
        raise AudioError(f"{path}: is empty (0 bytes)")
    return status.st_size
