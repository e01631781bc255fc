"""Refuse to resume a run with another command, other data or other initial weights.

The command records what identifies the run, and hands it over to the process that trains, which
adds what the composed settings say, and writes the note once its checks have passed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mae_ast.core.io.settings_note import (
    assert_same_as_note,
    list_content,
    read_note,
    write_note,
)

START_KEY = "checkpoint.finetune_from_model"
ADVICE = "give another --out, or remove {name} if both are equivalent"

_PENDING = "MAE_AST_RUN_NOTE"  # environment variable: the note, for the process that trains


def check_and_defer(note: Path, settings: Mapping[str, Any], has_begun: bool) -> None:
    """Compare the settings of a run that resumes; leave the rest to the process that trains.

    Args:
        note: JSON file in the run's folder.
        settings: settings that must not change, as JSON values.
        has_begun: the run has a checkpoint to resume from.

    Raises:
        ValueError: the run was started with different settings; names the first of them.
    """
    resumes = has_begun and note.is_file()
    if resumes:
        assert_same_run(note, settings)
    os.environ[_PENDING] = json.dumps([str(note.absolute()), dict(settings), resumes])


def check_or_record(inputs: Mapping[str, Any]) -> None:
    """Compare the inputs of a run that resumes, or record them with the deferred settings.

    Args:
        inputs: what the run reads, from :func:`inputs_of`.

    Raises:
        ValueError: the run was started with different inputs; names the first of them.
    """
    if pending := os.environ.pop(_PENDING, None):
        path, settings, resumes = json.loads(pending)
        if resumes:
            assert_same_run(Path(path), inputs, added=inputs)
        else:
            write_note(Path(path), {**settings, **inputs})


def recorded(note: Path, key: str) -> Any:
    """Return a setting that a run has recorded; ``None`` if there is none.

    Raises:
        ValueError: the note is damaged.
    """
    return read_note(note, ADVICE.format(name=note.name)).get(key) if note.is_file() else None


def assert_same_run(
    note: Path, settings: Mapping[str, Any], added: Mapping[str, Any] | None = None
) -> None:
    """Compare settings with those that a run was started with.

    Args:
        note: JSON file in the run's folder.
        settings: settings that must not change, as JSON values.
        added: those of them that notes of earlier versions do not record; then they are accepted.

    Raises:
        ValueError: the run was started with different settings; names the first of them.
    """
    assert_same_as_note(note, settings, ADVICE.format(name=note.name), absent=added)


def inputs_of(folder: Path, names: Iterable[str], prefix: str = "") -> dict[str, str]:
    """Return the content of manifests and labels, by file name; missing files are left to others.

    Args:
        folder: folder of the files.
        names: file names.
        prefix: precedes the names in the result.
    """
    files = {name: folder / name for name in names}
    return {prefix + name: list_content(path) for name, path in files.items() if path.is_file()}
