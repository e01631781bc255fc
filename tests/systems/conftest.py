"""The toy of these tests is registered like the other systems."""

from __future__ import annotations

import pytest

from mae_ast.core.models.registry import SYSTEMS
from tests.systems import toy


@pytest.fixture(autouse=True)
def _toy_is_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SYSTEMS, "toy", toy.SYSTEM)
