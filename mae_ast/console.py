"""Console: progress bars and one-line errors."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


def bar(what: str, unit: str) -> Callable[[Iterable[T], int], Iterable[T]]:
    """A function that shows progress while its argument is iterated over."""
    from tqdm import tqdm  # only where there is progress to show

    def wrap(items: Iterable[T], total: int) -> Iterable[T]:
        wrapped: Iterable[T] = tqdm(items, total=total, desc=what, unit=unit)
        return wrapped

    return wrap


@contextmanager
def user_errors() -> Iterator[None]:
    """End the program with one line where a person's input is wrong.

    The core raises ``ValueError`` or ``FileNotFoundError`` with a message for people; from within
    fairseq it would come out below a traceback of many frames.
    """
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(f"mae-ast: error: {error}") from error


def describe(error: Exception) -> str:
    """Return an error's message; of the operating system's errors, the path and what is wrong."""
    if not isinstance(error, OSError) or error.filename is None or error.filename2 is not None:
        return str(error)
    if error.errno == errno.EEXIST and not os.path.isdir(error.filename):
        return f"{error.filename}: is a file; a folder is needed there"
    if error.errno == errno.ENOTDIR:
        return f"{error.filename}: is below a file; a folder is needed there"
    return f"{error.filename}: {error.strerror}"
