"""Write the shards of a split, with a journal from which an interrupted run resumes.

For the split ``train``, the folder contains complete shards ``train-00000.tar``, ... and the shard
being written, such as ``.train-00003.part.tar``. The journal ``.train.rows.part`` has a line for
each finished row of the manifest: shard, offset and length in bytes, length in samples, and sample
rate, or ``-`` and the reason why the row was skipped. A line is added after the file is written.
``train.pack.json`` describes the packed data and the options.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mae_ast.core.io.archive import (
    BLOCK,
    END,
    ArchiveError,
    Member,
    check_member,
    close_archives,
    tar_header,
)
from mae_ast.core.io.atomic import atomic_write
from mae_ast.core.io.settings_note import assert_same_as_note, write_note

_SKIPPED = "-"  # takes the place of the shard number in a line of the journal


@dataclass(frozen=True)
class PackedFile:
    """A file to write into a shard.

    Args:
        path: name inside the shard.
        pieces: content in pieces, read once.
        num_bytes: size of the content.
        length: number of samples at its own rate.
        sample_rate: sample rate in Hz.
    """

    path: str
    pieces: Iterable[bytes]
    num_bytes: int
    length: int
    sample_rate: int


@dataclass(frozen=True)
class PackedRow:
    """A finished row of the manifest.

    Args:
        member: ``shard:offset:length``, with the shard's file name; empty if the row was skipped.
        length: number of samples at its own rate.
        sample_rate: sample rate in Hz.
        problem: reason why the row was skipped.
    """

    member: str
    length: int = 0
    sample_rate: int = 0
    problem: str = ""


class Shards:
    """Writer of the shards of a split.

    Enter it as a context manager, then add rows, starting with row ``num_rows``.

    Args:
        folder: folder of the shards.
        split: prefix of their names.
        shard_bytes: maximum size of a shard with more than one file.
        description: description of the packed data; resuming requires the same one.

    Raises:
        ValueError: the folder contains different files with these names.
    """

    def __init__(
        self, folder: Path, split: str, shard_bytes: int, description: dict[str, Any]
    ) -> None:
        self.num_rows = 0
        self.manifest = folder / f"{split}.tsv"
        self._folder, self._split, self._shard_bytes = folder, split, shard_bytes
        self._journal_path = folder / f".{split}.rows.part"
        self._description = folder / f"{split}.pack.json"
        self._wanted = {**description, "shard_bytes": shard_bytes}
        self._shard = 0  # number of the shard being written
        self._end = 0  # its size in bytes
        if self._description.exists():
            # Keys that the note lacks did not exist in the version that wrote it.
            assert_same_as_note(
                self._description,
                self._wanted,
                f"remove {self._description.name} and the shards, or choose another folder",
                absent=self._wanted,
            )
        elif self.manifest.exists() or any(folder.glob(f"{split}-{'[0-9]' * 5}.tar")):
            raise ValueError(
                f"{folder}: has a {split}.tsv or {split}-00000.tar that was not packed from this "
                "manifest; choose another folder"
            )

    def is_complete(self) -> bool:
        """Return whether all rows are packed and the manifest is written."""
        return (
            self._description.exists()
            and self.manifest.exists()
            and not self._journal_path.exists()
        )

    def __enter__(self) -> Shards:
        if not self._description.exists():
            write_note(self._description, self._wanted)
        close_archives()  # this process may have opened earlier files with these names
        lines = self._whole_lines()
        self.num_rows = len(lines)
        with atomic_write(self._journal_path) as part:
            part.write_bytes(b"".join(lines))
        self._journal = self._journal_path.open("ab")
        self._open_shard()
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self._data, self._journal):
            with suppress(OSError):  # errors of a full disk were already raised
                file.close()

    def add(self, number: int, file: PackedFile | str) -> None:
        """Write a row's file, or the reason for skipping it; start a new shard if one is full.

        If reading a piece fails, the row is not finished and can be added again.

        Raises:
            OSError: the file could not be written, or its size is no longer ``num_bytes``.
        """
        if isinstance(file, str):
            self._append_to_journal(_SKIPPED, file)
            return
        header = tar_header(number, file.path, file.num_bytes, crc32=0)
        padding = bytes(-file.num_bytes % BLOCK)
        size = len(header) + file.num_bytes + len(padding)
        if self._end and self._end + size + len(END) > self._shard_bytes:
            self._end_shard()
            self._open_shard()
        offset = self._end + len(header)
        crc32 = self._copy(file, offset)
        with self._writing(self._part()):
            self._data.write(padding)
            self._data.seek(self._end)
            self._data.write(tar_header(number, file.path, file.num_bytes, crc32))
            self._data.flush()
        self._end += size
        self._append_to_journal(self._shard, offset, file.num_bytes, file.length, file.sample_rate)

    def _copy(self, file: PackedFile, offset: int) -> int:
        """Write the content of a file to the shard and return its CRC-32."""
        crc32 = num_bytes = 0
        with self._writing(self._part()):
            self._data.seek(offset)
        for piece in file.pieces:
            crc32, num_bytes = zlib.crc32(piece, crc32), num_bytes + len(piece)
            with self._writing(self._part()):
                self._data.write(piece)
        if num_bytes != file.num_bytes:
            raise OSError(
                f"{file.path}: changed from {file.num_bytes} to {num_bytes} bytes while it was "
                "read; once it no longer changes, the same command resumes"
            )
        return crc32

    def end(self) -> None:
        """Finish the last shard."""
        if self._end:
            self._end_shard()
        else:
            self._data.close()
            self._part().unlink()

    def rows(self) -> Iterator[PackedRow]:
        """Yield all finished rows, in the order of the manifest."""
        with self._journal_path.open("rb") as lines:
            for line in lines:
                first, *others = os.fsdecode(line.rstrip(b"\n")).split("\t")
                if first == _SKIPPED:
                    yield PackedRow("", problem=others[0])
                else:
                    offset, size, length, rate = map(int, others)
                    name = self._whole(int(first)).name
                    yield PackedRow(str(Member(name, offset, size)), length, rate)

    def remove_journal(self) -> None:
        """Remove the journal, after everything is written."""
        self._journal.close()
        self._journal_path.unlink()

    def _whole_lines(self) -> list[bytes]:
        """Return the journal lines whose files are complete; the open shard is cut after them."""
        text = self._journal_path.read_bytes() if self._journal_path.exists() else b""
        lines = text[: text.rfind(b"\n") + 1].splitlines(keepends=True)
        places = [line.split(b"\t")[:3] for line in lines]
        shards = [int(place[0]) for place in places if place[0] != _SKIPPED.encode()]
        self._shard, self._end = (shards[-1] if shards else 0), 0
        if shards and self._whole(self._shard).exists():
            self._shard += 1
        for number, place in enumerate(places):
            if place[0] == str(self._shard).encode():
                member = Member(str(self._part()), int(place[1]), int(place[2]))
                if not _is_whole(member):  # data was lost before it reached the disk
                    return lines[:number]
                self._end = member.offset + member.length + -member.length % BLOCK
        return lines

    def _open_shard(self) -> None:
        with self._writing(self._part()):
            self._part().touch()
            self._data = self._part().open("r+b")
            self._data.truncate(self._end)

    def _end_shard(self) -> None:
        with self._writing(self._part()):
            self._data.seek(self._end)
            self._data.truncate()  # drop a file that could not be read completely
            self._data.write(END)
            self._data.flush()
            for file in (self._data, self._journal):
                os.fsync(file.fileno())  # so that a renamed shard is complete after a power failure
            self._data.close()
            os.replace(self._part(), self._whole(self._shard))
        self._shard, self._end = self._shard + 1, 0

    def _append_to_journal(self, *columns: object) -> None:
        with self._writing(self._journal_path):
            self._journal.write(os.fsencode("\t".join(map(str, columns)) + "\n"))
            self._journal.flush()

    def _whole(self, shard: int) -> Path:
        return self._folder / f"{self._split}-{shard:05d}.tar"

    def _part(self) -> Path:
        return self._folder / f".{self._split}-{self._shard:05d}.part.tar"

    @contextmanager
    def _writing(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(
                f"{path}: could not be written ({error.strerror or error}); with more disk "
                "space, the same command resumes"
            ) from error


def _is_whole(member: Member) -> bool:
    try:
        return check_member(member)
    except (ArchiveError, OSError):
        return False
