"""Markdown tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Format a table; cells are Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def code(text: str) -> str:
    """Format text as code in a cell; a bar within it ends no cell."""
    return f"`{text}`" if text else ""


def prose(text: str) -> str:
    """Format plain text for a cell: one line in which nothing is markup."""
    for character in "\\|<>*_[]":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())
