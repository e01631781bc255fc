"""Write files atomically, and lock them against other processes."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` if the context succeeds.

    The file gets the mode given by the umask, even if the writer creates a private one.

    Raises:
        OSError: the file could not be written; the message names ``path``.
    """
    # Processes on other machines may have the same process ID.
    part = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.part")
    try:
        part.touch()
        mode = part.stat().st_mode
        yield part
        if part.stat().st_mode != mode:
            part.chmod(mode & 0o777)
        os.replace(part, path)
    except OSError as error:
        raise OSError(f"{path}: could not be written ({error.strerror or error})") from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


@contextmanager
def file_lock(path: Path) -> Iterator[int]:
    """Hold an exclusive lock for ``path`` until the context ends.

    The lock is taken on ``.NAME.lock`` in the same folder, which is removed if the context
    succeeds. A killed process releases its lock. On file systems without locks, nothing is locked.

    Yields:
        The lock's file descriptor; the lock is held while any process, such as a child, has it
        open.

    Raises:
        ValueError: another process holds the lock.
    """
    name = path.with_name(f".{path.name}.lock")
    with _locked(name, path) as lock:
        yield lock.fileno()
        with suppress(OSError):  # before unlocking: afterwards, it may belong to another process
            name.unlink()


@contextmanager
def try_lock(path: Path) -> Iterator[bool]:
    """Hold the lock of :func:`file_lock`; yield ``False`` if another process holds it."""
    with ExitStack() as stack:
        try:
            stack.enter_context(file_lock(path))
        except ValueError:
            is_held = False
        else:
            is_held = True
        yield is_held


@contextmanager
def wait_for_lock(path: Path, poll_s: float = 0.05) -> Iterator[None]:
    """Hold the lock of :func:`file_lock`, after waiting for the process that holds it.

    Args:
        path: path to lock.
        poll_s: time between two attempts, in seconds.
    """
    while True:
        with try_lock(path) as is_held:
            if is_held:
                yield
                return
        time.sleep(poll_s)


def _locked(name: Path, path: Path) -> BinaryIO:
    """Open and lock the file; retry if it was removed before it was locked."""
    while True:
        lock = name.open("ab")
        try:
            if fcntl is not None:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.close()
            raise ValueError(f"{path}: is locked by another process") from error
        except OSError:  # the file system does not support locks
            return lock
        # Between the two calls above, the previous holder may have removed the file; other
        # processes would then lock a new file of this name.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock.fileno()), os.stat(name)):
                return lock
        lock.close()
