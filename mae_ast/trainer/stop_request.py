"""Handle SIGTERM, SIGUSR1 and SIGINT (Ctrl-C) as a request to save and exit.

This module is imported before PyTorch and fairseq, whose imports take seconds, so that signals
during the imports are handled, too. The reaction to a request depends on the progress of training:

- Before the first update, a single process has nothing to save and exits.
- One of several processes would leave the others waiting in a rendezvous or a collective if it
  exited then. It takes part in the start and in one update, which informs the others of the
  request. If that takes longer than ``MAE_AST_STOP_WITHIN_S`` seconds (default 120) because others
  have ended, it exits anyway.
- After the first update, the request is sent with each update (:mod:`mae_ast.trainer.preemption`).

A second SIGINT ends the process and its children at once. A terminal sends SIGINT to all processes
of a run, so spawned processes ignore it: the launcher forwards the first one as SIGTERM, and kills
its processes on the second. If SIGINT is ignored when the process starts, as under ``nohup`` or for
a background job of a script, it stays ignored.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from pathlib import Path
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
SAVING = "mae-ast: saving after this update; press Ctrl-C again to exit at once without saving"
AT_ONCE = "mae-ast: exited without saving"
STATUS_AT_ONCE = 128 + signal.SIGINT
LIMIT = "MAE_AST_STOP_WITHIN_S"  # environment variable
LIMIT_S = 120.0
_STARTING = "mae-ast: stopping before the first update; press Ctrl-C again to exit at once"
_MESSAGE = "mae-ast: ended on a signal before the first update; the same command starts again"

_REQUESTED = "MAE_AST_STOP_REQUESTED"  # in the environment of processes that are started later

_requested = threading.Event()
_alone = threading.Event()
_training = threading.Event()
_updated = threading.Event()
_launching = threading.Event()
_counting = threading.Event()
_interrupted = threading.Event()  # by Ctrl-C
_pids: dict[str, int] = {}  # "own" and, in a spawned process, "launcher"


def listen(spawned: bool = False) -> None:
    """Handle the signals as a request to save and exit; may be called more than once.

    Args:
        spawned: the process was spawned by a launcher of this module, which handles SIGINT.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGTERM) is _request:
        return
    _pids["own"] = os.getpid()
    if spawned:
        _pids["launcher"] = os.getppid()
    for number in SIGNALS:
        if not (number == signal.SIGINT and signal.getsignal(number) == signal.SIG_IGN):
            signal.signal(number, _request)
    _watch()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    if _REQUESTED in os.environ:
        _requested.set()
        _count_down()


def stop_listening() -> None:
    """Restore Python's signal handling, for a program that only submits jobs and waits for them."""
    if signal.getsignal(signal.SIGTERM) is not _request:
        return
    signal.set_wakeup_fd(-1)
    for number in SIGNALS:
        if signal.getsignal(number) is _request:
            is_ctrl_c = number == signal.SIGINT
            signal.signal(number, signal.default_int_handler if is_ctrl_c else signal.SIG_DFL)


@contextmanager
def deferring() -> Iterator[None]:
    """Block the signals until a program that this one starts, or becomes, handles them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def spawning() -> Iterator[None]:
    """Block the signals while processes are spawned, until these handle them."""
    resource_tracker.ensure_running()  # its start unblocks signals
    with deferring():
        yield
    if _requested.is_set():  # perhaps after their environment was set, before they were listed
        _forward(signal.SIGTERM)


def is_requested() -> bool:
    """Return ``True`` if this process was asked to exit."""
    return _requested.is_set()


def begin_training() -> None:
    """Declare that a training begins; a sweep runs several, one after the other.

    Raises:
        SystemExit: the previous training was asked to exit, which ends the whole sweep.
    """
    if _requested.is_set() and (_training.is_set() or _launching.is_set()):
        raise SystemExit(0)
    for flag in (_alone, _training, _updated, _launching):
        flag.clear()


def trains_alone() -> None:
    """Declare that no other process waits for this one, so that a request may end it at once."""
    _alone.set()
    _end_if_alone()


def launches() -> None:
    """Declare that this process only waits for those that train, without a time limit."""
    _launching.set()


def begin_update() -> None:
    """Declare that an update begins; once it is complete, there is something to save."""
    _training.set()


def end_update() -> None:
    """Declare that an update is complete and that all processes know each other's requests."""
    _updated.set()


def has_updated() -> bool:
    """Return ``True`` if an update was completed."""
    return _updated.is_set()


def end() -> NoReturn:
    """Exit before the first update, with status 0 and a message."""
    os.write(2, f"{_MESSAGE}\n".encode())
    raise SystemExit(0)


def exit_at_once() -> NoReturn:
    """Exit without saving, with the status of a program ended by SIGINT.

    Spawned processes are killed together with their data workers, which would otherwise notice it
    seconds later or report that their parent is gone.
    """
    children = [child.pid for child in multiprocessing.active_children() if child.pid is not None]
    for pid in [*children, *(grandchild for child in children for grandchild in _children(child))]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    os.write(2, f"{AT_ONCE}\n".encode())
    os._exit(STATUS_AT_ONCE)


def _children(pid: int) -> list[int]:
    """Return the PIDs of a process's children; empty on systems other than Linux."""
    found: list[int] = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # the process has just ended
            found += map(int, file.read_text().split())
    return found


def _request(number: int, frame: FrameType | None) -> None:
    if (
        os.getpid() != _pids["own"]
    ):  # a data worker that has just been forked; the trainer handles it
        return
    if number == signal.SIGINT and _is_left_to_launcher():
        return
    _requested.set()
    os.environ[_REQUESTED] = "1"
    if _launching.is_set():
        _forward(signal.SIGTERM if number == signal.SIGINT else number)
    _end_if_alone()


def _is_left_to_launcher() -> bool:
    """Return ``True`` if a launcher handles SIGINT; torch sends one when a launcher dies."""
    return os.getppid() == _pids.get("launcher")


def _forward(number: int) -> None:
    for child in multiprocessing.active_children():
        if child.pid is not None:
            os.kill(child.pid, number)


def _end_if_alone() -> None:
    if _requested.is_set() and _alone.is_set() and not _training.is_set():
        end()


def _watch() -> None:
    """Start a thread that notices a signal while the main thread is inside a library call.

    Python calls handlers between two instructions of the main thread, which may wait in a
    rendezvous for minutes. The signal's number, however, is written to a pipe at once.
    """
    if getattr(_watch, "done", False):
        return
    _watch.done = True  # type: ignore[attr-defined]
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    # A forked data worker inherits the pipe; its signals must not reach the trainer.
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))

    def wait() -> None:
        while numbers := os.read(read, 64):
            for number in numbers:
                _notice(number)

    threading.Thread(target=wait, daemon=True).start()


def _notice(number: int) -> None:
    if signal.getsignal(number) is not _request:  # another part of the program handles it
        return
    if number == signal.SIGINT and _is_left_to_launcher():
        return
    if number == signal.SIGINT:
        if _interrupted.is_set():
            exit_at_once()
        _interrupted.set()
        if _training.is_set() or _launching.is_set():
            os.write(2, f"{SAVING}\n".encode())
        elif not _alone.is_set():
            os.write(2, f"{_STARTING}\n".encode())
    _count_down()


def _count_down() -> None:
    """Limit the time until the first update is complete, starting now."""
    if _counting.is_set():
        return
    _counting.set()
    timer = threading.Timer(float(os.environ.get(LIMIT, LIMIT_S)), _end_unless_updated)
    timer.daemon = True
    timer.start()


def _end_unless_updated() -> None:
    if not (_updated.is_set() or _launching.is_set()):
        os.write(2, f"{_MESSAGE}\n".encode())
        os._exit(0)
