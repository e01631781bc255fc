"""Notes of the settings that a folder was started with."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

from mae_ast.core.io.settings_note import (
    assert_same,
    assert_same_as_note,
    file_digest,
    list_content,
    read_note,
    write_note,
)

ADVICE = "choose another folder"


def test_note_is_written_and_read(tmp_path: Path) -> None:
    note = tmp_path / "new" / "note.json"
    settings = {"data": "ünd", "layers": [1, 2], "start": None}
    write_note(note, settings)
    assert note.read_text(encoding="utf-8").startswith('{\n "data": ')
    assert read_note(note, ADVICE) == settings
    assert_same_as_note(note, settings, ADVICE)
    assert [path.name for path in note.parent.iterdir()] == ["note.json"]


def test_the_first_difference_is_named_with_both_values_and_the_remedy(tmp_path: Path) -> None:
    note = tmp_path / "note.json"
    write_note(note, {"layer": 2, "start": None, "data": "a"})
    message = f"{tmp_path}: was started with start null, not 'b.pt'; choose another folder"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        assert_same_as_note(note, {"layer": 2, "start": "b.pt", "data": "c"}, ADVICE)


def test_settings_that_a_note_lacks_have_their_earlier_value(tmp_path: Path) -> None:
    note = tmp_path / "note.json"
    write_note(note, {"task": "ks"})
    layout = {"task": "ks", "layout": "time_steps"}
    assert_same_as_note(note, layout, ADVICE, absent={"layout": "time_steps"})
    with pytest.raises(ValueError, match="layout 'tokens', not 'time_steps'"):
        assert_same_as_note(note, layout, ADVICE, absent={"layout": "tokens"})
    with pytest.raises(ValueError, match=r"note\.json: records no layout; choose another"):
        assert_same_as_note(note, layout, ADVICE)


@pytest.mark.parametrize("text", ["", "{", "[]", "\xff"])
def test_damaged_note_is_named(tmp_path: Path, text: str) -> None:
    note = tmp_path / "note.json"
    note.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"note\.json: is .*; choose another folder"):
        assert_same_as_note(note, {}, ADVICE)


def test_settings_without_a_note_are_compared() -> None:
    assert_same("a.pt", {"std": 4.0}, {"std": 4.0}, ADVICE)
    with pytest.raises(ValueError, match=r"a\.pt: was started with std 4.0, not 3.0; choose"):
        assert_same("a.pt", {"std": 4.0}, {"std": 3.0}, ADVICE)


def test_digests(tmp_path: Path) -> None:
    manifest, labels = tmp_path / "train.tsv", tmp_path / "train.lbl"
    manifest.write_text("/root\na.wav\t9\nb.wav\t9\n")
    labels.write_text("x\ny\n")
    rows = hashlib.sha256(b"a.wav\t9\nb.wav\t9\n").hexdigest()[:16]
    assert list_content(manifest) == f"2 lines, sha256 {rows}"
    assert list_content(labels) == f"2 lines, sha256 {file_digest(labels)}"
    assert file_digest(manifest) == hashlib.sha256(manifest.read_bytes()).hexdigest()[:16]
