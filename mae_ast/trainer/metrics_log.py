"""Metrics of a run, ``metrics.jsonl``: one JSON object per line for each set of logged values.

Each line has

- ``timestamp``: ISO 8601, UTC;
- ``kind``: ``train_inner`` (since the last line of this kind), ``train`` (one epoch, or its part so
  far at a signal), the name of the validation split, ``health`` (feature metrics), or ``end``
  (duration and peak memory of the process, when it ends);
- ``epoch``, except for ``health`` and ``end``, and ``num_updates``;
- the values in full precision; ``null`` if a value is not finite.

A run that resumes removes the lines of later updates, which it repeats.
"""

from __future__ import annotations

import errno
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from numbers import Integral
from pathlib import Path
from typing import Any

from mae_ast.core.io.atomic import atomic_write

METRICS_FILE = "metrics.jsonl"  # in a run's folder
END = "end"  # kind of the line about the end of a process

logger = logging.getLogger(__name__)


class MetricsLog:
    """Append lines to a run's ``metrics.jsonl``, each of them with one write.

    Errors of the disk are logged once and do not stop training; no partial line is left.

    Args:
        path: the file; it is created if it does not exist.
        num_updates: updates of the run so far; lines of later updates are removed.

    Raises:
        OSError: the file cannot be read or written.
    """

    def __init__(self, path: Path, num_updates: int) -> None:
        self._path = path
        self._has_failed = False
        if path.exists():
            _remove_after(path, num_updates)
        self._file = path.open("ab", buffering=0)

    def write(
        self, kind: str, num_updates: int, values: Mapping[str, Any], epoch: int | None = None
    ) -> None:
        """Append a line.

        Args:
            kind: kind of the line, see the module.
            num_updates: updates of the run so far.
            values: numbers or tensors of one element, by name.
            epoch: epoch, counted from 1.
        """
        line = {
            "timestamp": now(),
            "kind": kind,
            **({} if epoch is None else {"epoch": epoch}),
            **{name: number(value) for name, value in values.items()},
            "num_updates": num_updates,
        }
        try:
            self._append(f"{json.dumps(line)}\n".encode())
        except OSError as error:
            if not self._has_failed:
                self._has_failed = True
                logger.warning(
                    "%s: lines are missing (%s)", self._path, error.strerror or str(error)
                )

    def _append(self, data: bytes) -> None:
        end = self._file.seek(0, os.SEEK_END)
        try:
            if self._file.write(data) < len(data):  # the disk became full within the line
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            self._file.truncate(end)
            raise

    def close(self) -> None:
        """Close the file."""
        self._file.close()


_current: MetricsLog | None = None  # of the training in this process


def begin(folder: Path, num_updates: int) -> None:
    """Open the file of a run, for :func:`record`.

    Args:
        folder: folder of the run.
        num_updates: updates of the run so far; lines of later updates are removed.
    """
    global _current
    end()
    path = folder / METRICS_FILE
    try:
        _current = MetricsLog(path, num_updates)
    except OSError as error:
        logger.warning("%s: metrics are not written (%s)", path, error.strerror or error)


def record(
    kind: str, num_updates: int, values: Mapping[str, Any], epoch: int | None = None
) -> None:
    """Append a line to the file of the current run; do nothing in processes that have none."""
    if _current is not None:
        _current.write(kind, num_updates, values, epoch)


def end() -> None:
    """Close the file of the current run, if any."""
    global _current
    if _current is not None:
        _current.close()
        _current = None


def now() -> str:
    """Return the current time, ISO 8601 in UTC, with milliseconds."""
    utc = timezone.utc  # `datetime.UTC` requires Python 3.11
    return datetime.now(utc).isoformat(timespec="milliseconds")


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's ``metrics.jsonl``.

    A last line that is incomplete, as while it is written, is skipped.

    Args:
        run: folder of the run.

    Raises:
        FileNotFoundError: the run has no such file.
    """
    lines = (line for _, line in _lines(run / METRICS_FILE))
    return [line for line in lines if line is not None]


def number(value: Any) -> int | float | None:
    """Return a number or a tensor of one element as a number of Python; ``None`` if not finite."""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, Integral):
        return int(value)
    return value if isinstance(value, float) and math.isfinite(value) else None


def _remove_after(path: Path, num_updates: int) -> None:
    """Remove the lines of later updates, and damaged ones."""
    with atomic_write(path) as part, part.open("wb") as kept:
        for raw, line in _lines(path):
            if line is not None and line["num_updates"] <= num_updates:
                kept.write(raw)


def _lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
    """Yield the lines of a file, and their content; ``None`` for a damaged one."""
    with path.open("rb") as file:
        for raw in file:
            try:
                line = json.loads(raw)
                is_whole = raw.endswith(b"\n") and isinstance(line["num_updates"], int)
            except (ValueError, KeyError, TypeError):
                is_whole = False
            yield raw, line if is_whole else None
