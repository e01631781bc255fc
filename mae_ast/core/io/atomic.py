"""Files that are whole or not there, and that one process alone writes."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path``; it is renamed to ``path`` if the context succeeds.

    The file gets the mode given by the umask, even if the writer creates a private one.

    Raises:
        OSError: it could not be written; names ``path``.
    """
    # Processes of other machines may have the same number.
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
    """Keep other processes from the work that ``path`` stands for, until the context ends.

    A file beside it, ``.NAME.lock``, is what is locked; it is removed once the context ends well.
    A process that is killed holds nothing any more. Where there are no locks, nobody is kept away.

    Yields:
        A file descriptor: whoever has it open, such as a child process, keeps others away.

    Raises:
        ValueError: another process holds it.
    """
    name = path.with_name(f".{path.name}.lock")
    with _locked(name, path) as lock:
        yield lock.fileno()
        with suppress(OSError):  # while it is locked: later, it may belong to another process
            name.unlink()


def _locked(name: Path, path: Path) -> BinaryIO:
    """Open and lock the file, and make sure that it still has this name once it is locked."""
    while True:
        lock = name.open("ab")
        try:
            if fcntl is not None:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.close()
            raise ValueError(f"{path}: another process is at work on it") from error
        except OSError:  # a file system without locks
            return lock
        # Between the two calls above, its holder may have removed the file; other processes would
        # then lock a new one of this name.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock.fileno()), os.stat(name)):
                return lock
        lock.close()
