"""Types of the suite: its setting, its parts, and the columns of their tables."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Case = dict[str, Any]  # what is measured, in JSON types; "name" describes it
Row = dict[str, Any]  # a case with its metrics, or with "error"


@dataclass(frozen=True)
class Setting:
    """Setting of a run; sent as JSON to the processes that measure.

    Args:
        device: "cpu" or "cuda".
        folder: folder for temporary audio files and runs.
        batches: batch sizes of a training step, in clips.
        precision: precision of the transformers, as in ``model.precision``.
        model: further settings of every model, keys of ``model.*`` without that prefix.
        quick: use tiny sizes, to check that everything works.
    """

    device: str
    folder: str
    batches: list[int]
    precision: str = "auto"
    model: dict[str, Any] = field(default_factory=dict)
    quick: bool = False

    @property
    def is_gpu(self) -> bool:
        """Return whether the device is a GPU."""
        return self.device == "cuda"

    @property
    def workers(self) -> int:
        """Return the number of data loader workers: one on a CPU, up to 16 cores with a GPU."""
        return min(16, os.cpu_count() or 1) if self.is_gpu else 1

    def pick(self, cpu: float, gpu: float, quick: float) -> float:
        """Return the size or time, of three, that applies to this run."""
        return quick if self.quick else gpu if self.is_gpu else cpu


def fixed_point(value: float, decimals: int) -> str:
    """Format a number with ``decimals``, or more for three significant digits: "0.0123"."""
    if value != 0 and math.isfinite(value):
        decimals = max(decimals, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{decimals}f}"


@dataclass(frozen=True)
class Column:
    """Column of a part's table.

    Args:
        heading: heading with the unit.
        key: key of the value in a row.
        form: format specification; numbers with a fixed number of decimals get more where these
            leave fewer than three significant digits.
        scale: factor that the value is multiplied by first.
    """

    heading: str
    key: str
    form: str = ""
    scale: float = 1.0

    def show(self, row: Row) -> str:
        """Return the text of the cell; empty if the row has no such value."""
        value = row.get(self.key)
        if value is None:
            return ""
        value = value if self.scale == 1 else value * self.scale
        if self.form.endswith("f"):
            return fixed_point(value, int(self.form[1:-1]))
        return format(value, self.form)


@dataclass(frozen=True)
class Part:
    """Part of the suite.

    Args:
        title: title of its table.
        about: method of measurement, in a sentence or two.
        cases: returns the cases in their order.
        measure: measures a case; runs in one process per case, or in one for all cases.
        columns: columns of the table.
        seconds: returns the expected time of a case in seconds, without starting its process.
        is_alone: on a CPU, measure each case in its own process, so that its peak memory does not
            include that of earlier cases; on a GPU one process is enough.
    """

    title: str
    about: str
    cases: Callable[[Setting], list[Case]]
    measure: Callable[[Case, Setting], Row]
    columns: tuple[Column, ...]
    seconds: Callable[[Setting], float]
    is_alone: bool = False
