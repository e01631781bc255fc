"""Read labelled clips from a table: a CSV or TSV file, or JSON Lines.

    path,label,start,end,group
    day1.wav,robin;wren,12.5,15,garden

Columns: ``path`` and ``label``; optionally ``split`` or ``fold``, ``group``, and ``start`` and
``end`` in seconds. A clip may have several labels: separated in a cell, as a list in JSON, or in
several rows with the same path, start and end.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mae_ast.core.io.plural import plural
from mae_ast.prepare.class_folders import SPLIT_NAMES
from mae_ast.prepare.own_clip import OwnClip

REQUIRED = ("path", "label")
COLUMNS = (*REQUIRED, "split", "fold", "group", "start", "end")
DELIMITERS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
JSON_LINES = (".jsonl", ".ndjson")
MAX_SHOWN = 10  # maximum number of other columns that a message names
_FOLD = re.compile(r"(?:fold[ _-]?)?(\d{1,6})", re.IGNORECASE)


@dataclass(frozen=True)
class Table:
    """Labelled clips of a table.

    Args:
        clips: the clips; rows of the same segment are one clip.
        num_rows: number of rows.
        columns: meaning to name of the columns that are used.
        unused: names of the other columns.
    """

    clips: list[OwnClip]
    num_rows: int
    columns: dict[str, str]
    unused: list[str]

    def preview(self, num_clips: int = 3) -> list[str]:
        """Return lines that show how the table was understood."""
        names = ", ".join(
            key if key == name else f"{key} (named {name})" for key, name in self.columns.items()
        )
        unused = f"; unused: {', '.join(self.unused[:MAX_SHOWN])}" if self.unused else ""
        rows, clips = plural(self.num_rows, "row"), plural(len(self.clips), "clip")
        lines = [f"{rows}, {clips}; columns {names}{unused}"]
        for clip in self.clips[:num_clips]:
            more = [clip.split or clip.fold, f"group {clip.group}" if clip.group else ""]
            lines.append(f"  {clip.describe()}: {', '.join([*clip.labels, *filter(None, more)])}")
        return lines


def read_table(
    file: Path,
    root: Path | None = None,
    renamed: Mapping[str, str] | None = None,
    separator: str = ";",
) -> Table:
    """Read a table of labelled clips.

    Args:
        file: ``.csv``, ``.tsv`` or ``.jsonl`` file with a header or keys.
        root: folder that paths are relative to; ``None``: that of the file.
        renamed: meaning to name of a column that is named differently; "": do not use it.
        separator: string between the labels of a clip; "": each cell is one label.

    Raises:
        FileNotFoundError, IsADirectoryError: there is no such file.
        ValueError: it is invalid; the message has the line and the column.
    """
    if file.is_dir():
        raise IsADirectoryError(
            f"{file}: is a folder; expected a table of clips. For a folder for each class, use "
            "'mae-ast prepare folders'"
        )
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; expected a table of clips")
    folder = Path(os.path.abspath(root or file.parent))
    if not folder.is_dir():
        raise NotADirectoryError(f"--root {folder}: no such folder")
    columns = {key: key for key in COLUMNS} | dict(renamed or {})
    if unknown := sorted(columns.keys() - set(COLUMNS)):
        raise ValueError(f"--column {unknown[0]}: is not one of {', '.join(COLUMNS)}")
    header, rows = _read_json_lines(file) if file.suffix.lower() in JSON_LINES else _read_csv(file)
    if not any(header):
        raise ValueError(f"{file}: is empty; expected the columns path and label")
    columns = _used_columns(file, header, columns, renamed or {})
    merged: dict[tuple[str, float, float | None], tuple[str, OwnClip]] = {}
    num_rows = 0
    for where, row in rows:
        num_rows += 1
        _merge(merged, _Row(where, row, columns, separator).clip(folder), where)
    if not merged:
        raise ValueError(f"{file}: has no rows; expected one for each clip after the header")
    clips = [clip for _, clip in merged.values()]
    used = set(columns.values())
    return Table(clips, num_rows, columns, [name for name in header if name and name not in used])


class _Row:
    """A row of a table.

    Args:
        where: ``file:line``, for messages.
        values: name of each column to its value.
        columns: meaning to name of the columns that are used.
        separator: string between labels.
    """

    def __init__(
        self, where: str, values: Mapping[str, Any], columns: Mapping[str, str], separator: str
    ) -> None:
        self.where, self.values = where, values
        self.columns, self.separator = columns, separator

    def clip(self, folder: Path) -> OwnClip:
        """Return the clip; paths are relative to ``folder``.

        Raises:
            ValueError: a value is invalid.
        """
        path = os.path.normpath(folder / self.required("path"))
        relative = os.path.relpath(path, folder)
        name = path if relative.startswith("..") else relative
        start, end = self.seconds("start"), self.seconds("end")
        if end is not None and end <= (start or 0):
            self.fail("end", f"{end:g} is not after the start, {start or 0:g}")
        return OwnClip(
            *(path, Path(name).as_posix(), self.labels()),
            *(self.split(), self.fold(), self.text("group")),
            *(start or 0.0, end),
        )

    def fail(self, key: str, problem: str) -> None:
        """Raise the error about the value of a column."""
        raise ValueError(f"{self.where}: column {self.columns[key]}: {problem}")

    def text(self, key: str) -> str:
        """Return a value as text; "" if there is none."""
        value = self.values.get(self.columns.get(key, ""))
        if value is None:
            return ""
        if not _is_cell(value):
            self.fail(key, f"{json.dumps(value)} is neither text nor a number")
        return str(value).strip()

    def required(self, key: str) -> str:
        """Return a value that must not be empty, if the table has its column."""
        text = self.text(key)
        if not text and key in self.columns:
            self.fail(key, "is empty")
        return text

    def labels(self) -> tuple[str, ...]:
        """Return the labels, without repetitions."""
        value = self.values.get(self.columns["label"])
        if isinstance(value, list):
            texts = [str(each).strip() for each in value if _is_cell(each)]
            if len(texts) < len(value):
                self.fail("label", f"{json.dumps(value)} is not a list of labels")
        elif self.separator:
            texts = [text.strip() for text in self.required("label").split(self.separator)]
        else:
            texts = [self.required("label")]
        if not texts or not all(texts):
            self.fail("label", f"{value!r} has an empty label; expected at least one")
        return tuple(dict.fromkeys(" ".join(text.split()) for text in texts))

    def split(self) -> str:
        """Return the split, ``train``, ``valid`` or ``test``; "" without such a column."""
        text = self.required("split")
        if text and text.lower() not in SPLIT_NAMES:
            self.fail("split", f"{text!r}; expected train, valid or test")
        return SPLIT_NAMES[text.lower()] if text else ""

    def fold(self) -> str:
        """Return the fold, such as ``fold1``; "" without such a column."""
        text = self.required("fold")
        match = _FOLD.fullmatch(text)
        if text and match is None:
            self.fail("fold", f"{text!r}; expected a number, such as 1 or fold1")
        return f"fold{int(match[1])}" if match else ""

    def seconds(self, key: str) -> float | None:
        """Return a time in seconds; ``None`` if there is none."""
        text = self.text(key)
        if not text:
            return None
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not 0 <= value < math.inf:
            self.fail(key, f"{text!r} is not a time in seconds, such as 12.5")
        return value


def _is_cell(value: object) -> bool:
    """Return whether a value of JSON is text or a number, as in a cell of a table."""
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def _merge(
    merged: dict[tuple[str, float, float | None], tuple[str, OwnClip]], clip: OwnClip, where: str
) -> None:
    """Add a clip, or its labels to an earlier clip of the same segment.

    Raises:
        ValueError: the earlier row has another split, fold or group.
    """
    segment = clip.path, clip.start_s, clip.end_s
    first, other = merged.get(segment, (where, clip))
    for key in ("split", "fold", "group"):
        here, there = getattr(clip, key), getattr(other, key)
        if here != there:
            raise ValueError(
                f"{where}: column {key}: {here!r}, but {there!r} for the same clip at {first}"
            )
    labels = tuple(dict.fromkeys((*other.labels, *clip.labels)))
    merged[segment] = first, other._replace(labels=labels)


def _used_columns(
    file: Path, header: Sequence[str], columns: Mapping[str, str], renamed: Mapping[str, str]
) -> dict[str, str]:
    """Return meaning to name of the columns that a table has.

    Raises:
        ValueError: a column is missing, or there are both splits and folds.
    """
    if not any(header):
        raise ValueError(f"{file}: is empty; expected the columns path and label")
    used = {key: name for key, name in columns.items() if name in header}
    shown = ", ".join(header[:MAX_SHOWN])
    for key in columns:
        if key not in used and (key in REQUIRED or renamed.get(key)):
            name = columns[key]
            raise ValueError(
                f"{file}:1: has no column {name or key}, but {shown}; rename one, or name it with "
                f"--column {key}=NAME"
            )
    if "split" in used and "fold" in used:
        raise ValueError(
            f"{file}:1: has both splits (column {used['split']}) and folds (column "
            f"{used['fold']}); drop one with --column split= or --column fold="
        )
    return used


def _read_csv(file: Path) -> tuple[list[str], Iterator[tuple[str, dict[str, str]]]]:
    """Return the header and the rows, with ``file:line``, of a CSV or TSV file."""
    text = _read_text(file)
    first = text.partition("\n")[0]
    usual = DELIMITERS.get(file.suffix.lower(), ",")
    # Spreadsheets of some languages write semicolons to .csv files.
    delimiter = next((each for each in (usual, ",", "\t", ";") if each in first), usual)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)

    def records() -> Iterator[list[str]]:
        try:
            yield from reader
        except csv.Error as error:
            raise ValueError(f"{file}:{reader.line_num}: is not valid CSV ({error})") from error

    all_rows = records()
    header = [name.strip() for name in next(all_rows, [])]
    repeated = [name for name in header if name and header.count(name) > 1]
    if repeated:
        raise ValueError(f"{file}:1: has several columns {repeated[0]}")

    def rows() -> Iterator[tuple[str, dict[str, str]]]:
        for row in all_rows:
            where = f"{file}:{reader.line_num}"
            if not any(cell.strip() for cell in row):
                continue
            if len(row) != len(header):
                hint = f"; put cells with {delimiter!r} in quotes" if len(row) > len(header) else ""
                raise ValueError(
                    f"{where}: has {plural(len(row), 'column')}, but the header has "
                    f"{len(header)}{hint}"
                )
            yield where, dict(zip(header, row, strict=True))

    return header, rows()


def _read_json_lines(file: Path) -> tuple[list[str], Iterator[tuple[str, dict[str, Any]]]]:
    """Return the keys of all rows, and the rows with ``file:line``."""
    found = []
    for number, line in enumerate(_read_text(file).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            column = getattr(error, "colno", 1)
            raise ValueError(f"{file}:{number}:{column}: is not valid JSON ({error})") from error
        if not isinstance(row, dict):
            raise ValueError(f'{file}:{number}: is not an object, such as {{"path": "a.wav"}}')
        found.append((f"{file}:{number}", row))
    return list(dict.fromkeys(key for _, row in found for key in row)), iter(found)


def _read_text(file: Path) -> str:
    content = file.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{file}:{line}: is not UTF-8 text; save the table as CSV in UTF-8"
        ) from error
