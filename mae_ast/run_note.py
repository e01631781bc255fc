"""Record a run's settings and refuse to resume it with different ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mae_ast.core.files import written_whole


def hold_to(note: Path, settings: Mapping[str, Any], has_begun: bool) -> None:
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
        with written_whole(note) as part:
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
