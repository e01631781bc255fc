"""The rows of a manifest file, parsed in blocks: two million take a second.

A block's line ends and tabs are found at once, its numbers added up digit by digit over all rows.
Where anything is unlike what ``mae-ast manifest`` writes, the block is parsed line by line instead,
which reads all that may be written and names the line that is wrong.
"""

from __future__ import annotations

import os
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from mae_ast.core.io.audio import SOURCE_RATES
from mae_ast.core.io.plural import plural

FIRST_ROW_LINE = 2
MAX_RATE = SOURCE_RATES[1]
MAX_LENGTH = 2**48 - 1  # samples; 16,000 times as much still fits 64 bits

_BLOCK_BYTES = 2**22  # stays in a processor's cache, more or less
_TAB, _LF, _CR, _ZERO = b"\t\n\r0"


class ManifestError(ValueError):
    """A manifest that cannot be used; the message gives file, line, value and the remedy."""


@dataclass(frozen=True)
class Rows:
    """Rows of a manifest, packed.

    Args:
        packed_paths: all rows' paths, one after the other, as bytes.
        path_sizes: (rows,) int64, bytes of each path.
        lines: (rows,) int64, line numbers in the file.
        lengths: (rows,) int64, samples at each file's own rate.
        sample_rates: (rows,) int32, in Hz; 0 where the manifest does not say.
    """

    packed_paths: bytes | bytearray
    path_sizes: np.ndarray
    lines: np.ndarray
    lengths: np.ndarray
    sample_rates: np.ndarray


def parse_rows(file: BinaryIO, path: Path) -> Rows:
    """Parse what follows the line of the root.

    Args:
        file: open after that line.
        path: of the manifest, for messages.

    Raises:
        ManifestError: a row is not as it must be; names the first such line.
    """
    # These grow in place, where joining blocks in the end would need the memory twice.
    paths = bytearray()
    sizes, lines, lengths, rates = array("q"), array("q"), array("q"), array("i")
    line = FIRST_ROW_LINE
    while text := file.read(_BLOCK_BYTES):
        text += file.readline()
        rows = _parse_plain(text, line) or _parse_any(text, line, path)
        paths += rows.packed_paths
        sizes.frombytes(rows.path_sizes.tobytes())
        lines.frombytes(rows.lines.tobytes())
        lengths.frombytes(rows.lengths.tobytes())
        rates.frombytes(rows.sample_rates.tobytes())
        line += text.count(b"\n")
    return Rows(paths, np.asarray(sizes), np.asarray(lines), np.asarray(lengths), np.asarray(rates))


def _parse_plain(text: bytes, first_line: int) -> Rows | None:
    """Whole lines at once; ``None`` where one is not plainly path, length and perhaps rate."""
    data = np.frombuffer(text, dtype=np.uint8)
    ends = np.flatnonzero(data == _LF)
    if data[-1] != _LF:
        ends = np.append(ends, len(data))
    begins = np.append(0, ends[:-1] + 1)
    lines = np.arange(first_line, first_line + len(ends))
    ends -= (ends > begins) & (data[ends - 1] == _CR)
    if bool(((ends > begins) & (data[ends - 1] == _CR)).any()):
        return None
    is_blank = ends == begins
    if bool(is_blank.any()):
        begins, ends, lines = (values[~is_blank] for values in (begins, ends, lines))

    tabs = np.flatnonzero(data == _TAB)
    first = np.searchsorted(tabs, begins)
    count = np.searchsorted(tabs, ends) - first
    if not bool(((count == 1) | (count == 2)).all()):
        return None
    path_ends = tabs[first]
    length_ends = np.where(count == 2, tabs[first + count - 1], ends)
    lengths = _numbers(data, path_ends + 1, length_ends, MAX_LENGTH)
    rates = _numbers(data, np.minimum(length_ends + 1, ends), ends, MAX_RATE)
    if lengths is None or rates is None:
        return None
    if not bool(((path_ends > begins) & (lengths > 0)).all()):
        return None
    if bool(((rates == 0) & (length_ends + 1 < ends)).any()):
        return None  # a rate of 0 was written out

    # +1 where a path begins, -1 where it ends: the running sum is 1 within paths.
    is_path = np.zeros(len(data), dtype=np.int8)
    is_path[begins] = 1
    is_path[path_ends] = -1
    np.cumsum(is_path, out=is_path)
    packed = data[is_path.view(bool)].tobytes()
    return Rows(packed, path_ends - begins, lines, lengths, rates.astype(np.int32))


def _numbers(
    data: np.ndarray, begins: np.ndarray, ends: np.ndarray, most: int
) -> np.ndarray | None:
    """(rows,) int64, the decimal numbers at ``data[begin:end]``, 0 where that is nothing.

    ``None`` where one holds other bytes than digits, or is more than ``most``.
    """
    sizes = ends - begins
    widest = int(sizes.max(initial=0))
    if widest > len(str(most)):
        return None
    values = np.zeros(len(begins), dtype=np.int64)
    for place in range(widest):
        is_there = sizes > place
        digits = data[np.maximum(ends - 1 - place, 0)] - np.uint8(_ZERO)  # other bytes: above 9
        digits[~is_there] = 0
        if digits.max() > 9:
            return None
        values += digits * np.int64(10**place)
    return values if values.max(initial=0) <= most else None


def _parse_any(text: bytes, first_line: int, path: Path) -> Rows:
    """Line by line: all that may be written, and what is wrong by name."""
    paths, lines, lengths, rates = [], [], [], []
    for number, line in enumerate(text.split(b"\n"), start=first_line):
        row = line.rstrip(b"\r\n")
        if not row:
            continue
        columns = row.split(b"\t")
        if len(columns) not in (2, 3) or not columns[0]:
            raise ManifestError(
                f"{path}:{number}: {os.fsdecode(row)!r} has {plural(len(columns), 'column')}; a "
                "row is: path, tab, length in samples (then optionally tab, sample rate)"
            )
        paths.append(columns[0])
        lines.append(number)
        lengths.append(_number(columns[1], "length in samples", MAX_LENGTH, path, number))
        rate = columns[2] if len(columns) == 3 else b""
        rates.append(_number(rate, "sample rate in Hz", MAX_RATE, path, number) if rate else 0)
    return Rows(
        b"".join(paths),
        np.array([len(name) for name in paths], dtype=np.int64),
        np.array(lines, dtype=np.int64),
        np.array(lengths, dtype=np.int64),
        np.array(rates, dtype=np.int32),
    )


def _number(text: bytes, what: str, most: int, path: Path, number: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if not 0 < value <= most:
        raise ManifestError(
            f"{path}:{number}: {os.fsdecode(text)!r} is no {what}; a positive whole number "
            f"up to {most} is"
        )
    return value
