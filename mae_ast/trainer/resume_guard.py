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
    """Check like :func:`assert_same_run`, but leave writing to the process that trains.

    That process writes the note once its checks have passed (:func:`write_pending`).
    """
    if has_begun and note.is_file():
        assert_same_run(note, settings, has_begun)
    else:
        os.environ[_PENDING] = json.dumps([str(note.absolute()), dict(settings)])


def write_pending() -> None:
    """Write the deferred note, if there is one."""
    if pending := os.environ.pop(_PENDING, None):
        note, settings = json.loads(pending)
        assert_same_run(Path(note), settings, has_begun=False)


def assert_same_run(note: Path, settings: Mapping[str, Any], has_begun: bool) -> None:
    """Record the settings of a new run; compare those of a run that resumes.

    Args:
        note: JSON file in the run's folder.
        settings: settings that must not change, as JSON values.
        has_begun: the run has a checkpoint to resume from.

    Raises:
        ValueError: the run was started with different settings; names the first of them.
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
        raise ValueError(f"{note}: is not the record of such a run; give another --out") from error
    if differing:
        key = differing[0]
        raise ValueError(
            f"{note.parent}: was started with {key} {known[key]!r}, not {settings[key]!r}; give "
            f"another --out, or remove {note.name} if both are equivalent"
        )
