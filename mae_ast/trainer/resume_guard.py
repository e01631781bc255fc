"""Record a run's settings and refuse to resume it with different ones."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mae_ast.core.io.atomic import atomic_write

_PENDING = "MAE_AST_RUN_NOTE"  # environment variable: a note for the process that trains


def check_and_defer(note: Path, settings: Mapping[str, Any], has_begun: bool) -> None:
    """As :func:`assert_same_run`, but the process that replaces this one writes the note.

    It does so once the run is known to be able to start (:func:`write_pending`).
    """
    if has_begun and note.is_file():
        assert_same_run(note, settings, has_begun)
    else:
        os.environ[_PENDING] = json.dumps([str(note.absolute()), dict(settings)])


def write_pending() -> None:
    """Write the note that was deferred, if any."""
    if pending := os.environ.pop(_PENDING, None):
        note, settings = json.loads(pending)
        assert_same_run(Path(note), settings, has_begun=False)


def assert_same_run(note: Path, settings: Mapping[str, Any], has_begun: bool) -> None:
    """Note what a run is begun with; once it has begun, refuse others.

    Args:
        note: a JSON file in the run's folder.
        settings: what must stay the same, as JSON has it.
        has_begun: whether there is something to go on with.

    Raises:
        ValueError: it was begun with other settings; the first of them is named.
    """
    if not has_begun or not note.is_file():
        note.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(note) as part:
            part.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
        return
    try:
        known = json.loads(note.read_text(encoding="utf-8"))
        differing = [key for key in settings if known[key] != settings[key]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{note}: describes no such run; give another --out") from error
    if differing:
        key = differing[0]
        raise ValueError(
            f"{note.parent}: was begun with {key} {known[key]!r}, not {settings[key]!r}; give "
            f"another --out, or remove {note.name} if that is the same"
        )
