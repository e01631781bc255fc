"""Files that appear whole, with the mode of any other file, and locks that hold."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mae_ast.core.io import atomic
from mae_ast.core.io.atomic import atomic_write, file_lock


def test_a_failed_write_leaves_the_earlier_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("earlier")

    def write_half() -> None:
        with atomic_write(path) as part:
            part.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert path.read_text() == "earlier"
    assert os.listdir(tmp_path) == ["a"]


def test_a_lock_of_a_removed_file_is_not_taken_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its holder removes the file between another process's open and lock."""
    path = tmp_path / "work"
    lock_file = tmp_path / ".work.lock"
    flock = atomic.fcntl.flock
    removed = []

    def remove_first(file: object, how: int) -> None:
        if not removed:
            lock_file.unlink()
            removed.append(True)
        flock(file, how)

    monkeypatch.setattr(atomic.fcntl, "flock", remove_first)
    with file_lock(path) as number:
        assert lock_file.exists()
        assert os.path.samestat(os.fstat(number), os.stat(lock_file))
        with (
            pytest.raises(ValueError, match="work: another process is at work on it"),
            file_lock(path),
        ):
            pass
    assert os.listdir(tmp_path) == []
    with file_lock(path):
        pass
