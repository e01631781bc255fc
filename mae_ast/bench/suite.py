"""Runs the parts, in processes of their own, within a time that is known before."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mae_ast.bench.parts import PARTS
from mae_ast.bench.setting import Case, Part, Row, Setting
from mae_ast.train_command import module_command

START_S = 7  # of a process that imports torch
PATIENCE = 16  # a case that takes so many times what it should is ended
LEAST_LIMIT_S = 60

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Measured:
    """A part's results.

    Args:
        rows: one a case; those that failed hold "error".
        seconds: that the part took.
    """

    rows: list[Row]
    seconds: float


def expected_seconds(names: Sequence[str], setting: Setting) -> dict[str, float]:
    """What each part takes, roughly."""
    expected = {}
    for name in names:
        part = PARTS[name]
        count = len(part.cases(setting))
        starts = count if _is_alone(part, setting) else 1
        expected[name] = count * part.seconds(setting) + starts * START_S
    return expected


def run_parts(
    names: Sequence[str], setting: Setting, limit_s: float, log: Path, say: Say
) -> dict[str, Measured]:
    """Measure.

    Args:
        names: of the parts.
        setting: what was asked for.
        limit_s: no case begins after so long; it is named as left out.
        log: what the processes print goes here.
        say: told of each case when it is done.
    """
    deadline = time.monotonic() + limit_s
    results = {}
    with log.open("w", encoding="utf-8") as output:
        for name in names:
            begin = time.monotonic()
            rows = []
            cases = PARTS[name].cases(setting)
            for row in _rows(name, cases, setting, deadline, output.fileno()):
                rows.append(row)
                say(f"{name} {len(rows)}/{len(cases)}: {in_a_line(PARTS[name], row)}")
            results[name] = Measured(rows, time.monotonic() - begin)
    return results


def in_a_line(part: Part, row: Row) -> str:
    """A row in words."""
    if "error" in row:
        return f"{row['name']}: FAILED, {row['error']}"
    cells = ((column.heading, column.show(row)) for column in part.columns)
    return ", ".join(f"{heading} {cell}".strip() for heading, cell in cells if cell)


def _is_alone(part: Part, setting: Setting) -> bool:
    return part.is_alone and not setting.is_gpu


def _rows(
    name: str, cases: list[Case], setting: Setting, deadline: float, log: int
) -> Iterator[Row]:
    """A row for each case; a process that dies takes only its case with it."""
    pending = list(cases)
    while pending:
        if time.monotonic() > deadline:
            for case in pending:
                yield {**case, "error": "skipped: the time was up"}
            return
        together = pending[:1] if _is_alone(PARTS[name], setting) else pending
        for row in _ask(name, together, setting, deadline, log):
            pending = pending[1:]
            yield row


def _ask(
    name: str, cases: list[Case], setting: Setting, deadline: float, log: int
) -> Iterator[Row]:
    """Rows of one process: of all cases, or up to the one that it did not survive."""
    request = {"part": name, "setting": dataclasses.asdict(setting), "cases": cases}
    limit_s = max(LEAST_LIMIT_S, PATIENCE * PARTS[name].seconds(setting))
    process = subprocess.Popen(
        module_command("mae_ast.bench.worker"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.close()
        for case in cases:
            if time.monotonic() > deadline and case is not cases[0]:
                process.kill()
                return
            row = _answer(process, limit_s)
            if row is not None:
                yield row
                continue
            process.kill()
            reason = f"the process ended (status {process.wait()}) or took over {limit_s:.0f} s"
            yield {**case, "error": f"{reason}; see the log"}
            return


def _answer(process: subprocess.Popen[str], limit_s: float) -> Row | None:
    """The next row; ``None`` where the process ends before, or does not answer in time."""
    assert process.stdout is not None
    timer = threading.Timer(limit_s, process.kill)
    timer.start()
    try:
        for line in process.stdout:
            if line.startswith("@"):
                row: Row = json.loads(line[1:])
                return row
        return None
    finally:
        timer.cancel()
