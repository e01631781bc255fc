"""Record the settings that a folder was started with, and refuse to resume it with others."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mae_ast.core.io.atomic import atomic_write
from mae_ast.core.io.checksum import sha256
from mae_ast.core.io.first_line import first_line
from mae_ast.core.io.plural import plural

_BLOCK = 2**20  # bytes read at a time
_DIGITS = 16  # of a SHA-256


def write_note(note: Path, settings: Mapping[str, Any]) -> None:
    """Write settings, as JSON values, to a file of a folder, which is created."""
    note.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(note) as part:
        part.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def read_note(note: Path, advice: str) -> dict[str, Any]:
    """Read the settings that a note records.

    Raises:
        ValueError: the note is damaged; ``advice`` ends the message.
    """
    try:
        known = json.loads(note.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{note}: is damaged ({first_line(error)}); {advice}") from error
    if not isinstance(known, dict):
        raise ValueError(f"{note}: is not a record of settings; {advice}")
    return known


def assert_same_as_note(
    note: Path, settings: Mapping[str, Any], advice: str, absent: Mapping[str, Any] | None = None
) -> None:
    """Compare settings with those that a note records.

    Args:
        note: JSON file in the folder that is resumed.
        settings: settings that must not change, as JSON values.
        advice: remedy, which ends the message of an error.
        absent: values of settings that notes of earlier versions do not record.

    Raises:
        ValueError: a setting differs, or the note is damaged or does not record the setting.
    """
    known = {**(absent or {}), **read_note(note, advice)}
    if missing := [key for key in settings if key not in known]:
        raise ValueError(f"{note}: records no {missing[0]}; {advice}")
    assert_same(note.parent, known, settings, advice)


def assert_same(
    place: object, known: Mapping[str, Any], settings: Mapping[str, Any], advice: str
) -> None:
    """Compare settings with earlier ones.

    Args:
        place: folder or file that was started with the earlier settings.
        known: the earlier settings, a value for each key of ``settings``.
        settings: settings that must not change.
        advice: remedy, which ends the message of an error.

    Raises:
        ValueError: a setting differs; names the first one, its earlier and its new value.
    """
    for key, value in settings.items():
        if known[key] != value:
            raise ValueError(
                f"{place}: was started with {key} {_text(known[key])}, not {_text(value)}; {advice}"
            )


def file_digest(path: Path) -> str:
    """Return the first 16 digits of the SHA-256 of a file."""
    return sha256(path)[:_DIGITS]


def list_content(path: Path) -> str:
    """Describe the content of a manifest or a list of labels: number of lines, and SHA-256.

    The root on the first line of a manifest is not included: files may move as a whole.
    """
    digest, num_lines = hashlib.sha256(), 0
    with path.open("rb") as file:
        if path.suffix == ".tsv":
            file.readline()
        while block := file.read(_BLOCK):
            digest.update(block)
            num_lines += block.count(b"\n")
    return f"{plural(num_lines, 'line')}, sha256 {digest.hexdigest()[:_DIGITS]}"


def _text(value: Any) -> str:
    return "null" if value is None else repr(value)
