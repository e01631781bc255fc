"""Train in child processes, and forward to them what asks for the end."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any

from mae_ast.trainer.stop_request import AT_ONCE, SAVING, SIGNALS, STATUS_AT_ONCE


class Interrupted(BaseException):
    """A signal asked for the end; what was trained is saved. As KeyboardInterrupt, no error.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Trainings:
    """Training processes, one after the other, to which signals are forwarded.

    On the first signal the training saves and exits; on a second SIGINT it is killed. While none
    runs, :class:`Interrupted` is raised. A SIGINT that is ignored stays ignored. Use it as a
    context, in the main thread.
    """

    def __init__(self) -> None:
        self._child: subprocess.Popen[Any] | None = None
        self._is_starting = False
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
        """Train to the end.

        Args:
            command: of the process.
            pass_fds: file descriptors that it keeps open, should this program be killed.
            environment: of the process; by default that of this program.
            on_line: called with each line that the process prints, which is then not shown.

        Raises:
            Interrupted: a signal came; the process has ended.
            SystemExit: a second SIGINT came; the process is killed.
            ValueError: it failed.
        """
        output: dict[str, Any] = {}
        if on_line is not None:
            output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        self._is_starting = True
        # In a group of its own: a terminal's Ctrl-C reaches this program alone.
        self._child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            pass_fds=pass_fds,
            process_group=0,
            env=environment,
            **output,
        )
        self._is_starting = False
        if self._received is not None:
            self._child.send_signal(signal.SIGTERM)
        for line in self._child.stdout or ():
            assert on_line is not None
            on_line(line)
        status = self._child.wait()
        self._child = None
        if self._is_killed:
            raise SystemExit(STATUS_AT_ONCE)
        stopped = self._received is not None
        if status and not (stopped and -status == signal.SIGTERM):
            raise ValueError(f"training ended with status {status}; its messages stand above")
        if self._received is not None:
            raise Interrupted(self._received)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        is_second = number == self._received == signal.SIGINT
        self._received = number
        if self._child is None:
            if not self._is_starting:
                raise Interrupted(number)
        elif is_second:
            self._kill(self._child)
        else:
            if number == signal.SIGINT:
                os.write(2, f"{SAVING}\n".encode())
            self._child.send_signal(signal.SIGTERM)

    def _kill(self, child: subprocess.Popen[Any]) -> None:
        if child.poll() is None:  # else its number may be another's by now
            os.write(2, f"{AT_ONCE}\n".encode())
            os.killpg(child.pid, signal.SIGKILL)
            self._is_killed = True
