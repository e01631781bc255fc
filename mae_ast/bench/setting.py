"""What a run of the suite was asked for, and what a part of it is."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Case = dict[str, Any]  # what is measured, as JSON has it; "name" says it in words
Row = dict[str, Any]  # a case with its figures, or with "error"


@dataclass(frozen=True)
class Setting:
    """What was asked for; travels to the processes that measure.

    Args:
        device: "cpu" or "cuda".
        folder: where audio files are written, and runs.
        batches: clips of a training step.
        precision: of the transformers, as in ``model.precision``.
        model: further settings of every model, keys of ``model.*`` without that prefix.
        quick: sizes that only show that everything works.
    """

    device: str
    folder: str
    batches: list[int]
    precision: str = "auto"
    model: dict[str, Any] = field(default_factory=dict)
    quick: bool = False

    @property
    def is_gpu(self) -> bool:
        """Whether the device is one."""
        return self.device == "cuda"

    @property
    def workers(self) -> int:
        """Processes that load data: all cores beside a GPU, one where the CPU computes."""
        return min(16, os.cpu_count() or 1) if self.is_gpu else 1

    def pick(self, cpu: float, gpu: float, quick: float) -> float:
        """A size or a time for this run."""
        return quick if self.quick else gpu if self.is_gpu else cpu


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
        if not self.form.endswith("f") or value == 0 or not math.isfinite(value):
            return format(value, self.form)
        decimals = max(int(self.form[1:-1]), 2 - math.floor(math.log10(abs(value))))
        return f"{value:.{decimals}f}"


@dataclass(frozen=True)
class Part:
    """Something that is measured.

    Args:
        title: of its table.
        about: how it was measured, in a sentence or two.
        cases: what is measured, in this order.
        measure: figures of a case; runs in a process of its own, or in one for all cases.
        columns: of the table.
        seconds: that a case takes, roughly, its process not counted.
        is_alone: a process for each case, whose memory is its own; on a GPU, which tells each
            case's memory by itself, one process is enough.
    """

    title: str
    about: str
    cases: Callable[[Setting], list[Case]]
    measure: Callable[[Case, Setting], Row]
    columns: tuple[Column, ...]
    seconds: Callable[[Setting], float]
    is_alone: bool = False
