"""Format counts with their noun, for messages."""

from __future__ import annotations


def plural(count: int, noun: str, many: str | None = None) -> str:
    """Return a count with its noun in singular or plural: "1 clip", "0 clips", "1,250 clips".

    Args:
        count: the number.
        noun: the singular, such as "clip".
        many: the plural; default: ``noun`` with an s.
    """
    return f"{count:,} {noun if count == 1 else many or f'{noun}s'}"
