"""Start programs as forks of a process that has imported PyTorch and fairseq, which takes seconds.

``python -m tests.trainer.forked`` is that process. It reads requests from stdin and writes the PID
of each program that it starts, and its exit status in the end, to stdout: JSON, one line each.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

IMPORTED = (
    *("torch", "torchaudio", "tensorboardX", "fairseq_cli.hydra_train", "fairseq_cli.train"),
    "torch._dynamo",  # by each optimizer
)
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


class _Server:
    """The process that forks, seen from a test process."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,  # select() sees no lines in a buffer
            cwd=Path(__file__).parents[2],
            env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        )
        self._statuses: dict[int, int] = {}

    def start(self, **request: Any) -> int:
        """Start a program and return its PID, which is that of its process group, too."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{json.dumps(request)}\n".encode())
        while (started := self._read()) is None:
            pass
        self._statuses.pop(started, None)  # of another process, if PIDs begin anew
        return started

    def status(self, pid: int) -> int | None:
        """Return the exit status of a program that has ended."""
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
    if command[0] == sys.executable:
        sys.argv = command[command.index("-m") + 1 :]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = command
        runpy.run_path(command[0], run_name="__main__")


def _use_python_path() -> None:
    """Do what Python does with ``PYTHONPATH`` at its start; run a ``sitecustomize.py`` there."""
    folders = list(filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)))
    sys.path[:0] = folders
    for folder in folders:
        if (hook := Path(folder, "sitecustomize.py")).exists():
            runpy.run_path(str(hook))
            return


if __name__ == "__main__":
    with warnings.catch_warnings():  # what the programs warn of is theirs to show
        warnings.simplefilter("ignore")
        for name in IMPORTED:
            __import__(name)
    gc.freeze()  # forks would copy each page of what is collected
    wanted = serve()
    if wanted is not None:
        run(**wanted)
