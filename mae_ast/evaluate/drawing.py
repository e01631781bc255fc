"""Draw the names of classes, and save plots."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_CHARACTERS = 40
_AT_END = 15  # characters of a long name that are kept at its end
DPI = 120


def short_name(name: str) -> str:
    """Shorten a long name in its middle: names of many classes differ at their ends only."""
    if len(name) <= MAX_CHARACTERS:
        return name
    return f"{name[: MAX_CHARACTERS - _AT_END - 1]}…{name[-_AT_END:]}"


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure; characters that the font lacks are drawn as boxes, without warnings."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from")
        figure.savefig(path, dpi=DPI)
