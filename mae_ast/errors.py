"""Errors that a person can read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


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
