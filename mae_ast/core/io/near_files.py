"""Suggest existing names for a path that does not exist."""

from __future__ import annotations

import difflib
import os
from itertools import islice
from pathlib import Path

MAX_NAMES = 10_000  # names of a folder that are compared
MAX_SUGGESTED = 3


def suggestion(path: str | os.PathLike[str]) -> str:
    """Return a suggestion to append to the message about a path that does not exist.

    Returns:
        :func:`near_names`; if there are none, the missing parent folder, or an empty string.
    """
    missing = _first_missing(Path(path))
    return near_names(path) or ("" if missing == Path(path) else f"; {missing} does not exist")


def near_names(path: str | os.PathLike[str]) -> str:
    """Return ``; FOLDER has NAME, NAME``: similar names in the nearest existing folder, or ""."""
    missing = _first_missing(Path(path))
    folder = missing.parent
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in islice(entries, MAX_NAMES)]
    except OSError:
        return ""
    near = difflib.get_close_matches(missing.name, names, n=MAX_SUGGESTED)
    where = "this folder" if folder == Path() else folder
    return f"; {where} has {', '.join(near)}" if near else ""


def _first_missing(path: Path) -> Path:
    """Return the first component of a path that does not exist, as a path."""
    while not path.parent.is_dir() and path.parent != path:
        path = path.parent
    return path
