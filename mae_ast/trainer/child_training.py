"""Run training in child processes and forward signals to them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from mae_ast.trainer.stop_request import AT_ONCE, SAVING, SIGNALS, STATUS_AT_ONCE

_UPDATE_LINE = re.compile(r"\]\[train_inner\]\[INFO\] - (\{.*\})")  # of fairseq's log


def training_environment(parallel: int = 1) -> dict[str, str]:
    """Return the environment of a training process on the CPU.

    A core is for the data workers, since threads that compete for a core slow one another down.

    Args:
        parallel: number of processes that train at a time and share the cores.
    """
    threads = os.environ.get("OMP_NUM_THREADS") or str(
        max(1, ((os.cpu_count() or 1) - 1) // parallel)
    )
    settings = {"HYDRA_FULL_ERROR": "1", "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": threads}
    return {**os.environ, **settings}


def update_of(line: str) -> dict[str, Any] | None:
    """Return the metrics of a training process's line on updates; ``None``: it is another line."""
    found = _UPDATE_LINE.search(line)
    return None if found is None else json.loads(found[1])


class Interrupted(BaseException):
    """Raised when a signal requested a stop and the run has saved a checkpoint.

    Derived from ``BaseException``, like ``KeyboardInterrupt``.

    Args:
        number: number of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Trainings:
    """Context manager that runs training processes and forwards signals to them.

    On the first signal the trainings save and exit; a second SIGINT kills them. If no training is
    running, a signal raises :class:`Interrupted`. If SIGINT is ignored, it stays ignored. Enter it
    in the main thread; :meth:`run` may be called in several threads.
    """

    def __init__(self) -> None:
        self._children: set[subprocess.Popen[Any]] = set()
        self._num_starting = 0
        self._lock = threading.Lock()
        self._is_killed = False
        self._received: int | None = None
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Trainings:
        for number in SIGNALS:
            before = signal.getsignal(number)
            if not (number == signal.SIGINT and before == signal.SIG_IGN):
                self._handlers[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def run(
        self,
        command: Sequence[str],
        pass_fds: Sequence[int] = (),
        environment: Mapping[str, str] | None = None,
        on_line: Callable[[str], None] | None = None,
    ) -> None:
        """Run a training process and wait for its end.

        Args:
            command: command line of the process.
            pass_fds: file descriptors that stay open in the process if this program is killed.
            environment: environment of the process; default: this program's.
            on_line: called with each line that the process prints, instead of printing it.

        Raises:
            Interrupted: a signal was received; the process has ended.
            SystemExit: a second SIGINT was received; the process was killed.
            ValueError: the process failed.
        """
        # In its own process group, so that Ctrl-C in a terminal reaches this program only.
        options: dict[str, Any] = {"process_group": 0}  # new in Python 3.11, which fairseq needs
        if on_line is not None:
            options |= {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        if self._received is not None:
            raise Interrupted(self._received)
        with self._starting():
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                pass_fds=pass_fds,
                env=environment,
                **options,
            )
            self._children.add(child)
        if self._received is not None:
            child.send_signal(signal.SIGTERM)
        for line in child.stdout or ():
            assert on_line is not None
            on_line(line)
        status = child.wait()
        self._children.discard(child)
        if self._is_killed:
            raise SystemExit(STATUS_AT_ONCE)
        stopped = self._received is not None
        if status and not (stopped and -status == signal.SIGTERM):
            raise ValueError(f"training ended with status {status}; see its messages above")
        if self._received is not None:
            raise Interrupted(self._received)

    @contextmanager
    def _starting(self) -> Iterator[None]:
        """Let a signal that arrives meanwhile not raise, but reach the process that is started."""
        with self._lock:
            self._num_starting += 1
        try:
            yield
        finally:
            with self._lock:
                self._num_starting -= 1

    def _receive(self, number: int, frame: FrameType | None) -> None:
        is_second = number == self._received == signal.SIGINT
        self._received = number
        children = list(self._children)
        if not children:
            if not self._num_starting:
                raise Interrupted(number)
        elif is_second:
            self._kill(children)
        else:
            if number == signal.SIGINT:
                os.write(2, f"{SAVING}\n".encode())
            for child in children:
                child.send_signal(signal.SIGTERM)

    def _kill(self, children: Sequence[subprocess.Popen[Any]]) -> None:
        running = [child for child in children if child.poll() is None]  # else a reused PID
        if running:
            os.write(2, f"{AT_ONCE}\n".encode())
            self._is_killed = True
        for child in running:
            os.killpg(child.pid, signal.SIGKILL)
