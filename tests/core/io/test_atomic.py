"""Files are written atomically, and locks exclude other processes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mae_ast.core.io import atomic
from mae_ast.core.io.atomic import atomic_write, file_lock


def test_failed_write_keeps_the_previous_file(tmp_path: Path) -> None:
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


def test_lock_on_a_removed_file_is_retried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The holder removes the file after another process opened it and before that one locks it."""
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
            pytest.raises(ValueError, match="work: is locked by another process"),
            file_lock(path),
        ):
            pass
    assert os.listdir(tmp_path) == []
    with file_lock(path):
        pass
