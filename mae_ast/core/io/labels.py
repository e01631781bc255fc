"""Labels of classification: what the classes are, and which of them each clip has.

A data folder holds, beside its manifests,

    labels.csv    AudioSet's own format: ``index,mid,display_name``, indices 0 to C - 1 in order
    {split}.lbl   one line for each clip of {split}.tsv, in its order: ``mid``, or ``mid,mid,...``

Letters: B clips (rows of a split), C classes, R rows that are asked for, k labels of one clip.
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
_SEPARATORS = ',"\t\r\n'  # what a mid must not hold, to fit both files


class LabelError(ValueError):
    """A label file that cannot be used; the message gives file, line, value and the remedy."""


@dataclass(frozen=True)
class Labels:
    """The classes, in the order of their indices.

    Args:
        mids: (C,) what label files call them: AudioSet's machine ids, or any short names.
        names: (C,) what people call them.

    Raises:
        LabelError: there are none, a mid occurs twice, or fits no label file.
    """

    mids: tuple[str, ...]
    names: tuple[str, ...]
    _indices: Mapping[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.mids or len(self.mids) != len(self.names):
            raise LabelError(
                f"{len(self.mids)} mids and {len(self.names)} names; one of each for every class, "
                "and one class at least"
            )
        indices: dict[str, int] = {}
        for index, mid in enumerate(self.mids):
            if problem := _mid_problem(mid):
                raise LabelError(f"class {index}: {problem}")
            if indices.setdefault(mid, index) != index:
                raise LabelError(f"{mid!r}: is class {indices[mid]} and class {index}")
        object.__setattr__(self, "_indices", indices)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Labels:
        """Parse a ``labels.csv``.

        Raises:
            FileNotFoundError: there is no such file.
            LabelError: a line is not as it must be, or there is none.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: no such file of classes; 'mae-ast prepare' writes one, and its header is "
                f"{','.join(HEADER)}"
            )
        lines: dict[str, int] = {}
        names: list[str] = []
        for line, row in _csv_rows(path):
            where = f"{path}:{line}"
            if len(row) != len(HEADER):
                raise LabelError(
                    f"{where}: {','.join(row)!r} has {plural(len(row), 'column')}; a row is "
                    f'{",".join(HEADER)}, with a name that has commas in "quotes"'
                )
            index, mid, name = row
            if index.strip() != str(len(names)):
                raise LabelError(
                    f"{where}: index {index!r}; {len(names)} comes here, as indices go from 0 "
                    "upwards, one a line"
                )
            if problem := _mid_problem(mid):
                raise LabelError(f"{where}: {problem}")
            if mid in lines:
                raise LabelError(f"{where}: the mid {mid!r} is on line {lines[mid]} already")
            lines[mid] = line
            names.append(name)
        if not names:
            raise LabelError(f"{path}: lists no classes; after the header, one row for each class")
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
        """The index of a class.

        Raises:
            LabelError: there is no such class; the message has the nearest one.
        """
        index = self._indices.get(mid)
        if index is None:
            raise LabelError(self.unknown(mid))
        return index

    def unknown(self, mid: str) -> str:
        """What to say about a mid that is no class."""
        nearest = difflib.get_close_matches(mid, self.mids, n=1, cutoff=0.0)[0]
        name = self.names[self.index(nearest)]
        called = f" ({name})" if name != nearest else ""
        return f"{mid!r} is none of the {len(self)} classes; the nearest is {nearest!r}{called}"


class ClipLabels:
    """The labels of a split's clips, packed so that worker processes share them.

    Args:
        packed: (sum of k,) class indices of all clips, one clip after the other.
        ends: (B,) int64, where each clip ends in ``packed``.
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
            path: the file.
            labels: the classes.
            num_clips: rows of the manifest beside it, B.

        Raises:
            FileNotFoundError: there is no such file.
            LabelError: a line is not as it must be, or there are more or fewer than clips.
        """
        path = Path(path)
        manifest = path.with_suffix(".tsv").name
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: no such file of labels; it has one line for each clip of {manifest}, "
                f"with mids of {LABELS_FILE} separated by commas"
            )
        indices = {mid.encode(): index for index, mid in enumerate(labels.mids)}
        packed, ends = array("i"), array("q")
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                begin = len(packed)
                for text in line.removeprefix(b"\xef\xbb\xbf").split(b","):
                    index = indices.get(text.strip())
                    if index is None:
                        _refuse(line, text, labels, f"{path}:{number}", manifest)
                    packed.append(index)
                if len(packed) > begin + 1 and len(set(packed[begin:])) < len(packed) - begin:
                    raise LabelError(
                        f"{path}:{number}: {os.fsdecode(line.strip())!r} has a mid twice; once is "
                        "enough"
                    )
                ends.append(len(packed))
        if len(ends) != num_clips:
            raise LabelError(
                f"{path}: has {plural(len(ends), 'line')}, {manifest} lists "
                f"{plural(num_clips, 'clip')}; one line for each clip, in the same order"
            )
        small = np.uint16 if len(labels) <= 2**16 else np.int32
        return cls(np.asarray(packed, dtype=small), np.asarray(ends, dtype=np.int64), len(labels))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, row: int) -> np.ndarray:
        """(k,) int64, class indices of one clip."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        begin = self._ends[row - 1] if row else 0
        found: np.ndarray = self._packed[begin : self._ends[row]].astype(np.int64)
        return found

    @property
    def counts(self) -> np.ndarray:
        """(C,) int64, clips that have each class."""
        counts: np.ndarray = np.bincount(self._packed, minlength=self.num_classes)
        return counts

    def multi_hot(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """(R, C) float32, 1 where a clip has a class, else 0."""
        rows = np.asarray(rows, dtype=np.int64)
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"rows {rows.min()} to {rows.max()} of {len(self)}")
        begins = np.where(rows > 0, self._ends[rows - 1], 0)
        sizes = self._ends[rows] - begins
        # Where each label stands in `packed`: the row's begin, and so many after it.
        after = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        columns = self._packed[np.repeat(begins, sizes) + after]
        hot = np.zeros((len(rows), self.num_classes), dtype=np.float32)
        hot[np.repeat(np.arange(len(rows)), sizes), columns] = 1.0
        return hot


def write_clip_labels(path: str | os.PathLike[str], rows: Iterable[Sequence[str]]) -> None:
    """Write the mids of each clip of a split, in its manifest's order, atomically.

    Raises:
        LabelError: a clip has none, or one that fits no label file.
    """
    path = Path(path)

    def lines() -> Iterator[str]:
        for number, mids in enumerate(rows, start=1):
            problem = next(filter(None, map(_mid_problem, mids)), "") if mids else "no label"
            if problem:
                raise LabelError(f"{path}:{number}: {problem}; a clip has one mid or more")
            yield ",".join(mids) + "\n"

    with atomic_write(path) as part, part.open("w", encoding="utf-8", newline="") as file:
        file.writelines(lines())


def _mid_problem(mid: str) -> str:
    if not mid or mid != mid.strip() or any(c in mid for c in _SEPARATORS):
        return (
            f"{mid!r} is no mid; that is a short name without commas, quotes, tabs, line breaks, "
            "or spaces around it"
        )
    return ""


def _csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line number and columns of each row below the header."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file)
        try:
            header = next(reader, [])
            if tuple(column.strip() for column in header) != HEADER:
                raise LabelError(
                    f"{path}:1: {','.join(header)!r} is no header of classes, which is "
                    f"{','.join(HEADER)}"
                )
            for row in reader:
                yield reader.line_num, row
        except UnicodeDecodeError as error:
            raise LabelError(f"{path}: is no UTF-8 text ({error})") from error
        except csv.Error as error:
            raise LabelError(f"{path}:{reader.line_num}: is no csv ({error})") from error


def _refuse(line: bytes, text: bytes, labels: Labels, where: str, manifest: str) -> NoReturn:
    """Raise for a label that is no class."""
    if not line.strip():
        raise LabelError(
            f"{where}: is empty; each clip of {manifest} has a line with one mid or more"
        )
    if not text.strip():
        raise LabelError(
            f"{where}: {os.fsdecode(line.strip())!r} has a comma too many; mids are separated by "
            "one each"
        )
    raise LabelError(
        f"{where}: {labels.unknown(os.fsdecode(text.strip()))}; {LABELS_FILE} lists them"
    )
