"""Figures of the demo's phases: worked out once, kept in a file with what they were made of."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from mae_ast.core.io.atomic import atomic_write

Figures = dict[str, Any]


def kept(
    path: Path,
    made_of: Mapping[str, Any],
    make: Callable[[], Figures],
    files: Iterable[Path] = (),
) -> Figures:
    """What ``make`` gives, or gave when it was called with the same inputs, and its ``minutes``.

    Args:
        path: JSON file of the figures.
        made_of: the inputs; figures of others are made anew.
        make: works the figures out.
        files: written by ``make``, too; where one is missing, it is called again.
    """
    if path.is_file() and all(file.is_file() for file in files):
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["made_of"] == made_of:
            figures: Figures = found["figures"]
            return figures
    started = time.monotonic()
    figures = make()
    figures["minutes"] = round((time.monotonic() - started) / 60, 2)
    write_json(path, {"made_of": made_of, "figures": figures})
    return figures


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Indented, whole or not at all."""
    with atomic_write(path) as part:
        part.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
