"""Parse the rows of a manifest in blocks, about two million rows per second.

Line ends and tabs of a block are found with vectorised operations, and numbers are parsed digit by
digit over all rows. If a block contains anything that ``mae-ast manifest`` would not write, it is
parsed line by line, which accepts every valid notation and reports the invalid line.
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
MAX_LENGTH = 2**48 - 1  # samples; 16,000 times this still fits 64 bits
WHOLE = -1  # start of a row without a fourth column

_BLOCK_BYTES = 2**22  # roughly fits a CPU cache
_TAB, _LF, _CR, _ZERO = b"\t\n\r0"


class ManifestError(ValueError):
    """A manifest is invalid; the message gives file, line, value and the remedy."""


@dataclass(frozen=True)
class Rows:
    """Rows of a manifest, packed.

    Args:
        packed_paths: the paths of all rows as bytes, concatenated.
        path_sizes: (rows,) int64, size of each path in bytes.
        lines: (rows,) int64, line numbers in the file.
        lengths: (rows,) int64, number of samples at each file's own rate.
        sample_rates: (rows,) int32, in Hz; 0 if the manifest does not give it.
        starts: (rows,) int64, first sample of a segment, at the file's own rate; ``WHOLE`` (-1) for
            a whole file.
    """

    packed_paths: bytes | bytearray
    path_sizes: np.ndarray
    lines: np.ndarray
    lengths: np.ndarray
    sample_rates: np.ndarray
    starts: np.ndarray


def parse_rows(file: BinaryIO, path: Path) -> Rows:
    """Parse all rows after the root line.

    Args:
        file: the manifest, positioned after its first line.
        path: path of the manifest, for messages.

    Raises:
        ManifestError: a row is invalid; the message gives the first such line.
    """
    # These grow in place; concatenating blocks at the end would need twice the memory.
    paths = bytearray()
    sizes, lines, lengths, rates, starts = (array(kind) for kind in "qqqiq")
    line = FIRST_ROW_LINE
    while text := file.read(_BLOCK_BYTES):
        text += file.readline()
        rows = _parse_block(text, line) or _parse_lines(text, line, path)
        paths += rows.packed_paths
        sizes.frombytes(rows.path_sizes.tobytes())
        lines.frombytes(rows.lines.tobytes())
        lengths.frombytes(rows.lengths.tobytes())
        rates.frombytes(rows.sample_rates.tobytes())
        starts.frombytes(rows.starts.tobytes())
        line += text.count(b"\n")
    return Rows(paths, *map(np.asarray, (sizes, lines, lengths, rates, starts)))


def _parse_block(text: bytes, first_line: int) -> Rows | None:
    """Parse whole lines at once; ``None`` if a line is not plain path, length, rate, start."""
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
    if not bool(((count >= 1) & (count <= 3)).all()):
        return None
    path_ends = tabs[first]
    length_ends = np.where(count >= 2, tabs[np.minimum(first + 1, len(tabs) - 1)], ends)
    rate_ends = np.where(count == 3, tabs[np.minimum(first + 2, len(tabs) - 1)], ends)
    rate_begins, start_begins = np.minimum(length_ends + 1, ends), np.minimum(rate_ends + 1, ends)
    lengths = _parse_integers(data, path_ends + 1, length_ends, MAX_LENGTH)
    rates = _parse_integers(data, rate_begins, rate_ends, MAX_RATE)
    starts = _parse_integers(data, start_begins, ends, MAX_LENGTH)
    if lengths is None or rates is None or starts is None:
        return None
    if not bool(((path_ends > begins) & (lengths > 0)).all()):
        return None
    is_segment = start_begins < ends
    if bool(((rates == 0) & ((rate_begins < rate_ends) | is_segment)).any()):
        return None  # an explicit rate of 0, or a start without a rate
    if bool((starts + lengths > MAX_LENGTH).any()):
        return None
    starts[~is_segment] = WHOLE

    # +1 where a path begins, -1 where it ends: the running sum is 1 within paths.
    is_path = np.zeros(len(data), dtype=np.int8)
    is_path[begins] = 1
    is_path[path_ends] = -1
    np.cumsum(is_path, out=is_path)
    packed = data[is_path.view(bool)].tobytes()
    return Rows(packed, path_ends - begins, lines, lengths, rates.astype(np.int32), starts)


def _parse_integers(
    data: np.ndarray, begins: np.ndarray, ends: np.ndarray, maximum: int
) -> np.ndarray | None:
    """Parse the decimal numbers at ``data[begin:end]`` to (rows,) int64; 0 for an empty range.

    Returns ``None`` if any contains other bytes than digits or is greater than ``maximum``.
    """
    sizes = ends - begins
    widest = int(sizes.max(initial=0))
    if widest > len(str(maximum)):
        return None
    values = np.zeros(len(begins), dtype=np.int64)
    for place in range(widest):
        is_there = sizes > place
        digits = data[np.maximum(ends - 1 - place, 0)] - np.uint8(_ZERO)  # other bytes: above 9
        digits[~is_there] = 0
        if digits.max() > 9:
            return None
        values += digits * np.int64(10**place)
    return values if values.max(initial=0) <= maximum else None


def _parse_lines(text: bytes, first_line: int, path: Path) -> Rows:
    """Parse line by line, accepting every valid notation and reporting the invalid line."""
    paths, lines, lengths, rates, starts = [], [], [], [], []
    for number, line in enumerate(text.split(b"\n"), start=first_line):
        row = line.rstrip(b"\r\n")
        if not row:
            continue
        columns = row.split(b"\t")
        where = f"{path}:{number}"
        if not 2 <= len(columns) <= 4 or not columns[0]:
            raise ManifestError(
                f"{where}: {os.fsdecode(row)!r} has {plural(len(columns), 'column')}; "
                "expected path, tab, length in samples, optionally tab, sample rate, optionally "
                "tab, start in samples"
            )
        length, rate, start = _parse_numbers(*columns[1:], where=where)
        paths.append(columns[0])
        lines.append(number)
        lengths.append(length)
        rates.append(rate)
        starts.append(start)
    return Rows(
        b"".join(paths),
        np.array([len(name) for name in paths], dtype=np.int64),
        np.array(lines, dtype=np.int64),
        np.array(lengths, dtype=np.int64),
        np.array(rates, dtype=np.int32),
        np.array(starts, dtype=np.int64),
    )


def _parse_numbers(
    length_text: bytes, rate_text: bytes = b"", start_text: bytes = b"", *, where: str
) -> tuple[int, int, int]:
    """Return the length, sample rate and start of a row."""
    length = _parse_integer(length_text, "length in samples", 1, MAX_LENGTH, where)
    rate = _parse_integer(rate_text, "sample rate in Hz", 1, MAX_RATE, where) if rate_text else 0
    if not start_text:
        return length, rate, WHOLE
    start = _parse_integer(start_text, "start in samples", 0, MAX_LENGTH, where)
    if rate == 0:
        raise ManifestError(
            f"{where}: a segment needs the sample rate at which its start and length are counted; "
            "expected path, length, sample rate, start"
        )
    if start + length > MAX_LENGTH:
        raise ManifestError(
            f"{where}: the segment's start {start} and length {length} add up to more than "
            f"{MAX_LENGTH} samples"
        )
    return length, rate, start


def _parse_integer(text: bytes, what: str, minimum: int, maximum: int, where: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = -1
    if not minimum <= value <= maximum:
        expected = "a positive integer" if minimum else "an integer from 0"
        raise ManifestError(
            f"{where}: {os.fsdecode(text)!r} is not a valid {what}; expected {expected} "
            f"up to {maximum}"
        )
    return value
