"""Read and write classification labels: the list of classes, and the classes of each clip.

Beside its manifests, a data folder contains

    labels.csv    AudioSet's format: ``index,mid,display_name``, indices 0 to C - 1 in order
    {split}.lbl   one line per clip of {split}.tsv, in the same order: ``mid`` or ``mid,mid,...``

Letters: B clips (rows of a split), C classes, R requested rows, k labels of one clip.
"""

from __future__ import annotations

import csv
import difflib
import os
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import numpy as np

from mae_ast.core.io.atomic import atomic_write
from mae_ast.core.io.plural import plural

HEADER = ("index", "mid", "display_name")
LABELS_FILE = "labels.csv"
UNEVEN = 3.0  # clips of the largest class per clip of the smallest, from which classes are uneven
_SEPARATORS = ',"\t\r\n'  # characters that a mid must not contain, for both files


class LabelError(ValueError):
    """A label file is invalid; the message gives file, line, value and the remedy."""


@dataclass(frozen=True)
class Labels:
    """The list of classes, in the order of their indices.

    Args:
        mids: (C,) identifiers used in label files: AudioSet's machine ids, or any short names.
        names: (C,) display names.

    Raises:
        LabelError: there are no classes, or a mid is duplicated or invalid.
    """

    mids: tuple[str, ...]
    names: tuple[str, ...]
    _indices: Mapping[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.mids or len(self.mids) != len(self.names):
            raise LabelError(
                f"got {len(self.mids)} mids and {len(self.names)} names; expected one of each per "
                "class, and at least one class"
            )
        indices: dict[str, int] = {}
        for index, mid in enumerate(self.mids):
            if problem := _mid_problem(mid):
                raise LabelError(f"class {index}: {problem}")
            if indices.setdefault(mid, index) != index:
                raise LabelError(f"{mid!r}: is the mid of class {indices[mid]} and class {index}")
        object.__setattr__(self, "_indices", indices)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Labels:
        """Parse a ``labels.csv``.

        Raises:
            FileNotFoundError: the file does not exist.
            LabelError: a line is invalid, or the file lists no classes.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: no such class list; 'mae-ast prepare' writes one (header: "
                f"{','.join(HEADER)})"
            )
        lines: dict[str, int] = {}
        names: list[str] = []
        for line, row in _csv_rows(path):
            where = f"{path}:{line}"
            if len(row) != len(HEADER):
                raise LabelError(
                    f"{where}: {','.join(row)!r} has {plural(len(row), 'column')}; expected "
                    f"{','.join(HEADER)}, with quotes around a name that contains commas"
                )
            index, mid, name = row
            if index.strip() != str(len(names)):
                raise LabelError(
                    f"{where}: index {index!r}; expected {len(names)}, since indices count up "
                    "from 0, one per line"
                )
            if problem := _mid_problem(mid):
                raise LabelError(f"{where}: {problem}")
            if mid in lines:
                raise LabelError(f"{where}: duplicate mid {mid!r}, already on line {lines[mid]}")
            lines[mid] = line
            names.append(name)
        if not names:
            raise LabelError(f"{path}: lists no classes; expected one row per class after line 1")
        return cls(tuple(lines), tuple(names))

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write a ``labels.csv``, atomically."""
        with (
            atomic_write(Path(path)) as part,
            part.open("w", encoding="utf-8", newline="") as file,
        ):
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(HEADER)
            writer.writerows(zip(range(len(self)), self.mids, self.names, strict=True))

    def __len__(self) -> int:
        return len(self.mids)

    def __contains__(self, mid: object) -> bool:
        return mid in self._indices

    def index(self, mid: str) -> int:
        """Return the index of a class.

        Raises:
            LabelError: there is no such class; the message suggests the closest one.
        """
        index = self._indices.get(mid)
        if index is None:
            raise LabelError(self.unknown_message(mid))
        return index

    def unknown_message(self, mid: str) -> str:
        """Return an error message for an unknown mid, with the closest known one."""
        nearest = difflib.get_close_matches(mid, self.mids, n=1, cutoff=0.0)[0]
        name = self.names[self.index(nearest)]
        display_name = f" ({name})" if name != nearest else ""
        return (
            f"{mid!r} is not one of the {len(self)} classes; the closest is "
            f"{nearest!r}{display_name}"
        )


class ClipLabels:
    """Labels of the clips of a split, packed so that worker processes share the memory.

    Args:
        packed: (sum of k,) class indices of all clips, concatenated.
        ends: (B,) int64, end of each clip in ``packed``.
        num_classes: C.
    """

    def __init__(self, packed: np.ndarray, ends: np.ndarray, num_classes: int) -> None:
        self.num_classes = num_classes
        self._packed = packed
        self._ends = ends

    @classmethod
    def read(cls, path: str | os.PathLike[str], labels: Labels, num_clips: int) -> ClipLabels:
        """Parse a ``{split}.lbl``.

        Args:
            path: path of the file.
            labels: list of classes.
            num_clips: number of rows of the manifest beside it, B.

        Raises:
            FileNotFoundError: the file does not exist.
            LabelError: a line is invalid, or the number of lines differs from ``num_clips``.
        """
        path = Path(path)
        manifest = path.with_suffix(".tsv").name
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: no such label file; expected one line for each clip of {manifest}, with "
                f"comma-separated mids of {LABELS_FILE}"
            )
        indices = {mid.encode(): index for index, mid in enumerate(labels.mids)}
        packed, ends = array("i"), array("q")
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                begin = len(packed)
                for text in line.removeprefix(b"\xef\xbb\xbf").split(b","):
                    index = indices.get(text.strip())
                    if index is None:
                        _raise_invalid_label(line, text, labels, f"{path}:{number}", manifest)
                    packed.append(index)
                if len(packed) > begin + 1 and len(set(packed[begin:])) < len(packed) - begin:
                    raise LabelError(
                        f"{path}:{number}: {os.fsdecode(line.strip())!r} has a duplicate mid; list "
                        "each mid once"
                    )
                ends.append(len(packed))
        if len(ends) != num_clips:
            raise LabelError(
                f"{path}: has {plural(len(ends), 'line')}, but {manifest} lists "
                f"{plural(num_clips, 'clip')}; expected one line per clip, in the same order"
            )
        small = np.uint16 if len(labels) <= 2**16 else np.int32
        return cls(np.asarray(packed, dtype=small), np.asarray(ends, dtype=np.int64), len(labels))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, row: int) -> np.ndarray:
        """Return the class indices of one clip, (k,) int64."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        begin = self._ends[row - 1] if row else 0
        found: np.ndarray = self._packed[begin : self._ends[row]].astype(np.int64)
        return found

    @property
    def counts(self) -> np.ndarray:
        """Number of clips of each class, (C,) int64."""
        counts: np.ndarray = np.bincount(self._packed, minlength=self.num_classes)
        return counts

    def multi_hot(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return multi-hot targets, (R, C) float32: 1 where a clip has a class, else 0."""
        rows = np.asarray(rows, dtype=np.int64)
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"rows {rows.min()} to {rows.max()} of {len(self)}")
        begins = np.where(rows > 0, self._ends[rows - 1], 0)
        sizes = self._ends[rows] - begins
        # Position of each label in `packed`: the begin of its row plus its offset in the row.
        offsets = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        columns = self._packed[np.repeat(begins, sizes) + offsets]
        hot = np.zeros((len(rows), self.num_classes), dtype=np.float32)
        hot[np.repeat(np.arange(len(rows)), sizes), columns] = 1.0
        return hot


def write_clip_labels(path: str | os.PathLike[str], rows: Iterable[Sequence[str]]) -> None:
    """Write the mids of each clip of a split, in the order of its manifest, atomically.

    Raises:
        LabelError: a clip has no mid, or an invalid one.
    """
    path = Path(path)

    def lines() -> Iterator[str]:
        for number, mids in enumerate(rows, start=1):
            problem = next(filter(None, map(_mid_problem, mids)), "") if mids else "no label"
            if problem:
                raise LabelError(f"{path}:{number}: {problem}; expected at least one mid per clip")
            yield ",".join(mids) + "\n"

    with atomic_write(path) as part, part.open("w", encoding="utf-8", newline="") as file:
        file.writelines(lines())


def _mid_problem(mid: str) -> str:
    if not mid or mid != mid.strip() or any(c in mid for c in _SEPARATORS):
        return (
            f"{mid!r} is not a valid mid; expected a short name without commas, quotes, tabs, line "
            "breaks or surrounding spaces"
        )
    return ""


def _csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield line number and columns of each row after the header."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file)
        try:
            header = next(reader, [])
            if tuple(column.strip() for column in header) != HEADER:
                raise LabelError(
                    f"{path}:1: {','.join(header)!r} is not a valid header; expected "
                    f"{','.join(HEADER)}"
                )
            for row in reader:
                yield reader.line_num, row
        except UnicodeDecodeError as error:
            raise LabelError(f"{path}: is not UTF-8 text ({error})") from error
        except csv.Error as error:
            raise LabelError(f"{path}:{reader.line_num}: is not valid CSV ({error})") from error


def _raise_invalid_label(
    line: bytes, text: bytes, labels: Labels, where: str, manifest: str
) -> NoReturn:
    """Raise a LabelError for a label that is empty or not a class."""
    if not line.strip():
        raise LabelError(
            f"{where}: is empty; expected at least one mid for each clip of {manifest}"
        )
    if not text.strip():
        raise LabelError(
            f"{where}: {os.fsdecode(line.strip())!r} has an empty mid; expected mids separated by "
            "single commas"
        )
    raise LabelError(
        f"{where}: {labels.unknown_message(os.fsdecode(text.strip()))}; {LABELS_FILE} lists all"
    )
