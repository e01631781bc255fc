"""Start programs as forks of a process that has imported PyTorch and fairseq, which takes seconds.

``python -m tests.trainer.forked`` is that process. It reads requests from stdin and writes the PID
of each program that it starts, and its exit status in the end, to stdout: JSON, one line each.
"""

from __future__ import annotations

import atexit
import faulthandler
import gc
import json
import logging
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.config_store import ConfigStore

IMPORTED = (
    *("torch", "torchaudio", "tensorboardX", "fairseq_cli.hydra_train", "fairseq_cli.train"),
    "torch._dynamo",  # by each optimizer
    *("av", "soundfile"),
)
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
POLL_S = 0.01


class Fork:
    """Program in a process group of its own, with the methods of :class:`subprocess.Popen`.

    Args:
        command: a Python program or ``python [-P] -m MODULE``, and arguments.
        cwd: working directory.
        stdout: file for the output; it exists.
        stderr: file for the errors; it exists.
        env: environment variables, all of them.
    """

    def __init__(
        self, command: Sequence[str], cwd: Path, stdout: str, stderr: str, env: Mapping[str, str]
    ) -> None:
        self.args = list(command)
        self._server = _server()
        self.pid = self._server.start(
            command=self.args, cwd=str(cwd), files=[stdout, stderr], env=dict(env)
        )

    def poll(self) -> int | None:
        """Return the exit status, negative if a signal ended the program; ``None``: it runs."""
        return self._server.status(self.pid)

    def wait(self, timeout: float = float("inf")) -> int:
        """Wait for the end and return the exit status."""
        end = time.monotonic() + timeout
        while (status := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(self.args, timeout)
            time.sleep(POLL_S)
        return status

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the program has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill the program."""
        self.send_signal(signal.SIGKILL)


def run_forked(
    command: Sequence[object], cwd: Path | None = None, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, like :func:`subprocess.run` with its output captured."""
    with tempfile.TemporaryDirectory() as folder:
        out, errors = Path(folder, "out"), Path(folder, "errors")
        out.touch()
        errors.touch()
        arguments = list(map(str, command))
        env = {**os.environ, **ENVIRONMENT}
        program = Fork(arguments, cwd or Path.cwd(), str(out), str(errors), env)
        try:
            status = program.wait(timeout)
        finally:
            program.kill()
        return subprocess.CompletedProcess(arguments, status, out.read_text(), errors.read_text())


class _Server:
    """The process that forks, seen from a test process."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,  # select() sees no lines in a buffer
            cwd=Path(__file__).parents[2],
            env={**os.environ, **ENVIRONMENT},
        )
        self._statuses: dict[int, int] = {}
        self._lock = threading.Lock()  # tests start programs in threads, too

    def start(self, **request: Any) -> int:
        """Start a program and return its PID, which is that of its process group, too."""
        assert self._process.stdin is not None
        with self._lock:
            self._process.stdin.write(f"{json.dumps(request)}\n".encode())
            while (started := self._read()) is None:
                pass
            self._statuses.pop(started, None)  # of another process, if PIDs begin anew
            return started

    def status(self, pid: int) -> int | None:
        """Return the exit status of a program that has ended."""
        with self._lock:
            while pid not in self._statuses and select.select([self._process.stdout], [], [], 0)[0]:
                self._read()
            return self._statuses.get(pid)

    def _read(self) -> int | None:
        """Read a line; return the PID of a program that has started."""
        assert self._process.stdout is not None
        line = json.loads(_read_line(self._process.stdout.fileno()))
        if "status" in line:
            self._statuses[line["pid"]] = line["status"]
            return None
        return int(line["pid"])


_server = cache(_Server)


def serve() -> dict[str, Any] | None:
    """Fork for each request until stdin ends; return the request in the fork."""
    running = 0
    while True:
        while running and (ended := os.waitpid(-1, os.WNOHANG))[0]:
            running -= 1
            print(json.dumps({"pid": ended[0], "status": os.waitstatus_to_exitcode(ended[1])}))
        sys.stdout.flush()
        if not select.select([0], [], [], POLL_S)[0]:
            continue
        line = _read_line(0)
        if not line:
            return None
        started, starts = os.pipe()
        if (pid := os.fork()) == 0:
            os.close(started)
            os.setsid()
            os.close(starts)
            request: dict[str, Any] = json.loads(line)
            return request
        os.close(starts)
        os.read(started, 1)  # it has a process group of its own
        os.close(started)
        running += 1
        print(json.dumps({"pid": pid}), flush=True)


def _read_line(descriptor: int) -> bytes:
    """Read a line without a buffer, which select() would not see; empty at the end."""
    line = b""
    while not line.endswith(b"\n") and (byte := os.read(descriptor, 1)):
        line += byte
    return line


def run(command: list[str], cwd: str, files: Sequence[str], env: dict[str, str]) -> None:
    """Run a program in this process, with its folder, environment, output and arguments."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    _use_python_path()
    descriptors = [os.open(os.devnull, os.O_RDONLY)]
    descriptors += [os.open(file, os.O_WRONLY | os.O_APPEND) for file in files]
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    faulthandler.enable()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a test in the background ignores it
    os.execv = _become  # type: ignore[assignment]
    if command[0] == sys.executable:
        _run_module(command)
    else:
        sys.argv = command
        runpy.run_path(command[0], run_name="__main__")


def _run_module(command: Sequence[str]) -> None:
    sys.argv = list(command[command.index("-m") + 1 :])
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


def _become(program: str, command: Sequence[str]) -> NoReturn:
    """Stand in for ``os.execv``, with which ``mae-ast pretrain`` becomes the training."""
    assert program == sys.executable
    try:
        _run_module(command)
    except Exception:  # the caller would not see it, either
        traceback.print_exc()
        sys.exit(1)
    sys.exit(0)


def _use_python_path() -> None:
    """Do what Python does with ``PYTHONPATH`` at its start; run a ``sitecustomize.py`` there."""
    folders = list(filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)))
    sys.path[:0] = folders
    for folder in folders:
        if (hook := Path(folder, "sitecustomize.py")).exists():
            runpy.run_path(str(hook))
            return


class _End:
    """Exit of a fork without the teardown of the interpreter, which would copy all its memory."""

    def __init__(self) -> None:
        self._status: int | None = None  # the interpreter's own exit
        atexit.register(self._exit)  # before all others, so it runs after them

    @contextmanager
    def of_program(self) -> Iterator[None]:
        """Note the exit status of the program that runs in the context."""
        try:
            yield
        except SystemExit as end:
            self._status = end.code if isinstance(end.code, int) else int(end.code is not None)
            raise
        except Exception:
            self._status = 1
            raise
        else:
            self._status = 0

    def _exit(self) -> None:
        if self._status is not None:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(self._status & 0xFF)


if __name__ == "__main__":
    end = _End()
    with warnings.catch_warnings():  # what the programs warn of is theirs to show
        warnings.simplefilter("ignore")
        for name in IMPORTED:
            __import__(name)
    ConfigStore.__deepcopy__ = lambda self, memo: self  # hydra would copy it for each composition
    logging.getLogger().handlers.clear()  # fairseq's, which a launcher precedes with its own
    gc.freeze()  # forks would copy each page of what is collected
    wanted = serve()
    if wanted is not None:
        with end.of_program():
            run(**wanted)
