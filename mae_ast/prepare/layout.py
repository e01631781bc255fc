"""Whether a folder is the data set that it should be, and the lists that lie in it."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path


def locate(folder: Path, below: Sequence[str], sign: str, what: str) -> Path:
    """The data set's own folder: the one given, or one of a known name below it.

    Args:
        folder: as given.
        below: names that the archive unpacks to.
        sign: a path pattern that is there if it is the data set.
        what: what the data set is and where one gets it, for the message.

    Raises:
        NotADirectoryError: there is no such folder.
        FileNotFoundError: it is not the data set.
    """
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder}: no such folder; expected {what}")
    for candidate in (folder, *(folder / name for name in below)):
        if any(candidate.glob(sign)):
            return candidate.resolve()
    raise FileNotFoundError(f"{folder}: no {sign} in it; expected {what}")


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """``file:line`` and text of each line that is not empty.

    Raises:
        ValueError: it is no text.
    """
    try:
        with path.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield f"{path}:{number}", line.strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is no UTF-8 text ({error})") from error


def read_table(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """``file:line`` and the named columns of each row of a csv with a header.

    Raises:
        ValueError: it lacks a column, or is no csv.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            if lacking := [name for name in columns if name not in (reader.fieldnames or ())]:
                raise ValueError(
                    f"{path}:1: its header lacks {', '.join(lacking)}; it has "
                    f"{', '.join(columns)}, and perhaps more"
                )
            for row in reader:
                where = f"{path}:{reader.line_num}"
                if None in row or None in row.values():
                    raise ValueError(f"{where}: has not as many columns as the header")
                yield where, {name: row[name] for name in columns}
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is no UTF-8 text ({error})") from error
    except csv.Error as error:
        raise ValueError(f"{path}: is no csv ({error})") from error


def draw(name: str) -> float:
    """A number in [0, 1) that depends on a name alone, so that it stays when others come."""
    return (
        int.from_bytes(hashlib.sha256(name.encode(errors="surrogateescape")).digest()[:8]) / 2**64
    )
