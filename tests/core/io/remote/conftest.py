"""A cache of its own for each test, and short waits."""

from __future__ import annotations

from pathlib import Path

import pytest

from mae_ast.core.io.remote import fetch, patience


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set the cache to an empty folder, and forget what earlier tests learnt of servers."""
    monkeypatch.setenv("MAE_AST_SHARD_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MAE_AST_SHARD_CACHE_GB", raising=False)
    monkeypatch.setenv("MAE_AST_SHARD_CACHE_PATIENCE_S", "20")
    monkeypatch.setattr(patience, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(patience, "LONGEST_WAIT_S", 0.05)
    monkeypatch.setattr(patience, "_given_up", {})
    monkeypatch.setattr(fetch, "_sums", {})
    return tmp_path / "cache"
