"""Locate a data set in a folder, and read its lists."""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


def locate(folder: Path, subfolders: Sequence[str], marker: str, expected: str) -> Path:
    """Return the root of a data set: the given folder, or a known subfolder of it.

    Args:
        folder: folder given by the user.
        subfolders: names of folders that the data set's archive unpacks to.
        marker: glob pattern that matches only in the root of the data set.
        expected: description of the data set and its source, for messages.

    Raises:
        NotADirectoryError: the folder does not exist.
        FileNotFoundError: the folder does not contain the data set.
    """
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder}: no such folder; expected {expected}")
    for candidate in (folder, *(folder / name for name in subfolders)):
        if any(candidate.glob(marker)):
            return candidate.resolve()
    raise FileNotFoundError(f"{folder}: no {marker} in it; expected {expected}")


def walk_files(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield the folder and the name of each file below a folder, in sorted order.

    There may be millions of files. Links are followed, but no folder is visited twice.
    """
    seen: set[str] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:  # a link to a folder above, or to one that was visited already
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        for name in sorted(names):
            yield parent, name


@contextmanager
def text_errors(path: Path) -> Iterator[None]:
    """Name the file in errors of its encoding or its CSV.

    Raises:
        ValueError: the file is not UTF-8 text, or not valid CSV.
    """
    try:
        yield
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8 text ({error})") from error
    except csv.Error as error:
        raise ValueError(f"{path}: is not valid CSV ({error})") from error


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield ``file:line`` and the text of each line that is not empty.

    Raises:
        ValueError: the file is not UTF-8 text.
    """
    with text_errors(path), path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield f"{path}:{number}", line.strip()


def read_table(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield ``file:line`` and the named columns of each row of a CSV file with a header.

    Raises:
        ValueError: the file lacks a column, or is not valid CSV.
    """
    with text_errors(path), path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        if missing := [name for name in columns if name not in (reader.fieldnames or ())]:
            raise ValueError(
                f"{path}:1: its header lacks {', '.join(missing)}; expected at least "
                f"{', '.join(columns)}"
            )
        for row in reader:
            where = f"{path}:{reader.line_num}"
            if None in row or None in row.values():
                raise ValueError(f"{where}: has a different number of columns than the header")
            yield where, {name: row[name] for name in columns}


def hash_uniform(name: str) -> float:
    """Hash a name to a number in [0, 1), so that splits stay stable when files are added."""
    digest = hashlib.sha256(name.encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
