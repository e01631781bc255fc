"""The shards of a split while they are written, and what is needed to go on after a stop.

In the folder, for the split ``train``: ``train-00000.tar``, ... are whole;
``.train-00003.part.tar`` grows. ``.train.rows.part``, the journal, has a line for each row of the
manifest that is done: shard, offset and length in bytes, length in samples, sample rate; or ``-``
and why the row is left out. A line comes once the row's file is written. ``train.pack.json`` says
what it is that is packed here.
"""

from __future__ import annotations

import json
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

_LEFT_OUT = "-"  # where else a line has its shard


@dataclass(frozen=True)
class PackedFile:
    """File to write into a shard.

    Args:
        path: name within the shard.
        pieces: content in pieces, read once.
        num_bytes: size of the content.
        length: in samples at its own rate.
        sample_rate: in Hz.
    """

    path: str
    pieces: Iterable[bytes]
    num_bytes: int
    length: int
    sample_rate: int


@dataclass(frozen=True)
class PackedRow:
    """A row of the manifest that is done.

    Args:
        member: ``shard:offset:length``, the shard without a folder; empty: it is left out.
        length: in samples at its own rate.
        sample_rate: in Hz.
        problem: why it is left out.
    """

    member: str
    length: int = 0
    sample_rate: int = 0
    problem: str = ""


class Shards:
    """Shards of a split. As a context they are open to take rows, beginning with ``num_rows``.

    Args:
        folder: where they are.
        split: what their names begin with.
        shard_bytes: what a shard may have; one file is always let in.
        description: what is packed; it goes on only with the same.

    Raises:
        ValueError: there is something else of these names.
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
        self._shard = 0  # the number of the one that grows
        self._end = 0  # its bytes
        if self._description.exists():
            self._check_description()
        elif self.manifest.exists() or any(folder.glob(f"{split}-{'[0-9]' * 5}.tar")):
            raise ValueError(
                f"{folder}: has a {split}.tsv or {split}-00000.tar that was not packed from this "
                "manifest; choose another folder"
            )

    def are_complete(self) -> bool:
        """Whether nothing is left to do."""
        return (
            self._description.exists()
            and self.manifest.exists()
            and not self._journal_path.exists()
        )

    def __enter__(self) -> Shards:
        if not self._description.exists():
            with atomic_write(self._description) as part:
                part.write_text(json.dumps(self._wanted, indent=1), encoding="utf-8")
        close_archives()  # this process may have read others of these names
        lines = self._whole_lines()
        self.num_rows = len(lines)
        with atomic_write(self._journal_path) as part:
            part.write_bytes(b"".join(lines))
        self._journal = self._journal_path.open("ab")
        self._open_shard()
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self._data, self._journal):
            with suppress(OSError):  # what a full disk did not take was said before
                file.close()

    def add(self, number: int, file: PackedFile | str) -> None:
        """Write a row's file, or the reason for skipping it; start another shard when one is full.

        If reading a piece fails, the row is not finished, and another file can take its place.

        Raises:
            OSError: it could not be written, or its size is no longer ``num_bytes``.
        """
        if isinstance(file, str):
            self._note(_LEFT_OUT, file)
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
        self._note(self._shard, offset, file.num_bytes, file.length, file.sample_rate)

    def _copy(self, file: PackedFile, offset: int) -> int:
        """Write the bytes of a file to the shard, and return their CRC-32."""
        crc32 = num_bytes = 0
        with self._writing(self._part()):
            self._data.seek(offset)
        for piece in file.pieces:
            crc32, num_bytes = zlib.crc32(piece, crc32), num_bytes + len(piece)
            with self._writing(self._part()):
                self._data.write(piece)
        if num_bytes != file.num_bytes:
            raise OSError(
                f"{file.path}: had {file.num_bytes} bytes, then {num_bytes}; once it stays as it "
                "is, the same command continues"
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
        """All rows that are done, in the manifest's order."""
        with self._journal_path.open("rb") as lines:
            for line in lines:
                first, *others = os.fsdecode(line.rstrip(b"\n")).split("\t")
                if first == _LEFT_OUT:
                    yield PackedRow("", problem=others[0])
                else:
                    offset, size, length, rate = map(int, others)
                    name = self._whole(int(first)).name
                    yield PackedRow(str(Member(name, offset, size)), length, rate)

    def forget(self) -> None:
        """Remove the journal: all is done."""
        self._journal.close()
        self._journal_path.unlink()

    def _check_description(self) -> None:
        try:
            there = json.loads(self._description.read_text(encoding="utf-8"))
            # What it does not speak of was not asked for when it was written.
            differs = sorted(k for k, value in self._wanted.items() if there.get(k, value) != value)
        except (ValueError, AttributeError) as error:
            raise ValueError(f"{self._description}: is damaged; remove it") from error
        if differs:
            raise ValueError(
                f"{self._description}: describes other shards (they differ in "
                f"{', '.join(differs)}); remove it and them, or choose another folder"
            )

    def _whole_lines(self) -> list[bytes]:
        """The journal as far as the files are there; the shard that grows is cut to those."""
        text = self._journal_path.read_bytes() if self._journal_path.exists() else b""
        lines = text[: text.rfind(b"\n") + 1].splitlines(keepends=True)
        places = [line.split(b"\t")[:3] for line in lines]
        shards = [int(place[0]) for place in places if place[0] != _LEFT_OUT.encode()]
        self._shard, self._end = (shards[-1] if shards else 0), 0
        if shards and self._whole(self._shard).exists():
            self._shard += 1
        for number, place in enumerate(places):
            if place[0] == str(self._shard).encode():
                member = Member(str(self._part()), int(place[1]), int(place[2]))
                if not _is_whole(member):  # the disk never got it, as when the power fails
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
            self._data.truncate()  # what was begun and could not be read to its end
            self._data.write(END)
            self._data.flush()
            for file in (self._data, self._journal):
                os.fsync(file.fileno())  # should the power fail: what the name says is there
            self._data.close()
            os.replace(self._part(), self._whole(self._shard))
        self._shard, self._end = self._shard + 1, 0

    def _note(self, *columns: object) -> None:
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
                f"{path}: could not be written ({error.strerror or error}); with more room, the "
                "same again goes on"
            ) from error


def _is_whole(member: Member) -> bool:
    try:
        return check_member(member)
    except (ArchiveError, OSError):
        return False
