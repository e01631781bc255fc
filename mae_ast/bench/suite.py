"""Run the parts in separate processes, within a time limit."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path

from mae_ast.bench.parts import PARTS
from mae_ast.bench.setting import Case, Part, Row, Setting
from mae_ast.trainer.command import module_command

START_S = 7  # start of a process that imports torch
PATIENCE = 16  # a case is killed after this many times its expected time ...
MIN_LIMIT_S = 60  # ... but not before this time
_SKIPPED = "skipped: "  # start of the error of a case that was not run

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Measured:
    """Results of a part.

    Args:
        rows: a row for each case; "error" in those that failed or were skipped.
        seconds: time that the part took.
    """

    rows: list[Row]
    seconds: float


def is_complete(rows: Sequence[Row]) -> bool:
    """Return whether no case was skipped because of the time limit or an interruption."""
    return not any(str(row.get("error", "")).startswith(_SKIPPED) for row in rows)


def expected_seconds(names: Sequence[str], setting: Setting) -> dict[str, float]:
    """Estimate the time of each part, in seconds."""
    expected = {}
    for name in names:
        part = PARTS[name]
        count = len(part.cases(setting))
        starts = count if _is_alone(part, setting) else 1
        expected[name] = count * part.seconds(setting) + starts * START_S
    return expected


def run_parts(
    names: Sequence[str], setting: Setting, limit_s: float, log: Path, say: Say
) -> Iterator[tuple[str, Measured]]:
    """Measure parts one after the other.

    Args:
        names: names of the parts.
        setting: setting of the run.
        limit_s: start no case after this time, in seconds; the remaining ones are skipped.
        log: file for the output of the measuring processes.
        say: called with one line per finished case.

    Yields:
        Each part's name and results as soon as it is done. A part that a ``KeyboardInterrupt``
        ends after its first case is yielded too, its remaining cases marked as skipped, before the
        exception is raised again.
    """
    deadline = time.monotonic() + limit_s
    with log.open("w", encoding="utf-8") as output:
        for name in names:
            begin = time.monotonic()
            rows: list[Row] = []
            cases = PARTS[name].cases(setting)
            try:
                with closing(_rows(name, cases, setting, deadline, output.fileno())) as measured:
                    for row in measured:
                        rows.append(row)
                        say(f"{name} {len(rows)}/{len(cases)}: {format_row(PARTS[name], row)}")
            except KeyboardInterrupt:
                if rows:
                    rows += [
                        {**case, "error": f"{_SKIPPED}interrupted"} for case in cases[len(rows) :]
                    ]
                    yield name, Measured(rows, time.monotonic() - begin)
                raise
            yield name, Measured(rows, time.monotonic() - begin)


def format_row(part: Part, row: Row) -> str:
    """Format a row as one line."""
    if "error" in row:
        return f"{row['name']}: FAILED, {row['error']}"
    cells = ((column.heading, column.show(row)) for column in part.columns)
    return ", ".join(f"{heading} {cell}".strip() for heading, cell in cells if cell)


def _is_alone(part: Part, setting: Setting) -> bool:
    return part.is_alone and not setting.is_gpu


def _rows(
    name: str, cases: list[Case], setting: Setting, deadline: float, log: int
) -> Generator[Row]:
    """Yield a row for each case; a process that dies takes only its case with it."""
    pending = list(cases)
    while pending:
        if time.monotonic() > deadline:
            for case in pending:
                yield {**case, "error": f"{_SKIPPED}time limit reached"}
            return
        together = pending[:1] if _is_alone(PARTS[name], setting) else pending
        for row in _ask(name, together, setting, deadline, log):
            pending = pending[1:]
            yield row


def _ask(
    name: str, cases: list[Case], setting: Setting, deadline: float, log: int
) -> Iterator[Row]:
    """Yield the rows of one process, up to the case in which it died.

    The process leads its own process group, so that its children, such as a training, are killed
    with it, and Ctrl-C reaches this process alone.
    """
    request = {"part": name, "setting": dataclasses.asdict(setting), "cases": cases}
    limit_s = max(MIN_LIMIT_S, PATIENCE * PARTS[name].seconds(setting))
    process = subprocess.Popen(
        module_command("mae_ast.bench.worker"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        start_new_session=True,
    )
    assert process.stdin is not None
    with process:
        try:
            with suppress(BrokenPipeError):  # a dead process is noticed by its missing answer
                process.stdin.write(json.dumps(request) + "\n")
                process.stdin.close()
            for case in cases:
                if time.monotonic() > deadline and case is not cases[0]:
                    return
                row = _answer(process, limit_s)
                if row is not None:
                    yield row
                    continue
                _end(process)
                reason = f"the process ended (status {process.wait()}) or took over {limit_s:.0f} s"
                yield {**case, "error": f"{reason}; see the log"}
                return
        finally:
            _end(process)


def _answer(process: subprocess.Popen[str], limit_s: float) -> Row | None:
    """Return the next row; ``None`` if the process ends, or does not answer in time."""
    assert process.stdout is not None
    timer = threading.Timer(limit_s, _end, [process])
    timer.daemon = True  # an interruption may come before it can be cancelled
    try:
        timer.start()
        for line in process.stdout:
            if line.startswith("@"):
                row: Row = json.loads(line[1:])
                return row
        return None
    finally:
        timer.cancel()


def _end(process: subprocess.Popen[str]) -> None:
    """Kill a process and its children, unless it has already been waited for."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
