"""Handle SIGTERM and SIGUSR1 as a request to save and exit.

This module is imported before PyTorch and fairseq, whose imports take seconds, so that signals
during the imports are handled too. The reaction to a request depends on the progress of training:

- Before the first update of a process that trains alone there is nothing to save: it ends.
- One of several processes that ended there would leave the others waiting in a rendezvous or a
  collective. It takes part in the start and in one update, with which the others learn of the
  request. If that takes longer than ``MAE_AST_STOP_WITHIN_S`` seconds (120), because others are
  gone, the process ends all the same.
- Later, the request travels with each update (:mod:`mae_ast.interruption`).
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
LIMIT = "MAE_AST_STOP_WITHIN_S"  # environment variable
LIMIT_S = 120.0
_MESSAGE = "mae-ast: ended on a signal before the first update; the same command starts again"

_REQUESTED = "MAE_AST_STOP_REQUESTED"  # in the environment of processes that are started later

_requested = threading.Event()
_alone = threading.Event()
_training = threading.Event()
_updated = threading.Event()
_launching = threading.Event()
_counting = threading.Event()


def listen(forward: bool = False) -> None:
    """Handle SIGTERM and SIGUSR1 as a request to save and exit.

    Args:
        forward: forward the signal to child processes, for a launcher whose children train.
    """
    if threading.current_thread() is not threading.main_thread():
        return

    owner = os.getpid()

    def request(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a data worker that was forked just now; the trainer decides
            return
        _requested.set()
        os.environ[_REQUESTED] = "1"
        for child in multiprocessing.active_children() if forward else []:
            if child.pid is not None:
                os.kill(child.pid, number)
        _end_if_alone()

    for number in SIGNALS:
        signal.signal(number, request)
    _watch()
    if _REQUESTED in os.environ:
        _requested.set()
        _count_down()


def is_requested() -> bool:
    """Return whether this process was asked to exit."""
    return _requested.is_set()


def trains_alone() -> None:
    """Declare that no other process waits for this one, so a request may end it at once."""
    _alone.set()
    _end_if_alone()


def launches() -> None:
    """Declare that this process only waits for those that train, however long they take to exit."""
    _launching.set()


def begin_update() -> None:
    """Declare that an update begins, after which there is something to save."""
    _training.set()


def end_update() -> None:
    """Declare that an update is complete; all processes know of each other's requests."""
    _updated.set()


def has_updated() -> bool:
    """Return whether an update was completed."""
    return _updated.is_set()


def end() -> NoReturn:
    """Exit before the first update with status 0 and a message."""
    os.write(2, f"{_MESSAGE}\n".encode())
    raise SystemExit(0)


def _end_if_alone() -> None:
    if _requested.is_set() and _alone.is_set() and not _training.is_set():
        end()


def _watch() -> None:
    """Start a thread that notices a signal while the main thread is within a library.

    Python calls a handler between two instructions of the main thread, which may wait in a
    rendezvous for minutes. The number of the signal is written into a pipe at once.
    """
    if getattr(_watch, "done", False):
        return
    _watch.done = True  # type: ignore[attr-defined]
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    # A data worker has the same pipe; its signals are not the trainer's.
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))

    def wait() -> None:
        while numbers := os.read(read, 64):
            if any(number in SIGNALS for number in numbers):
                _count_down()

    threading.Thread(target=wait, daemon=True).start()


def _count_down() -> None:
    """Allow the first update a limited time from now."""
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
