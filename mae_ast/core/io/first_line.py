"""First line of an error, for messages of one line."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message; without a message, the name of its class."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
