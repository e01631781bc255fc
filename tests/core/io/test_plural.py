"""Nouns agree with their counts."""

from __future__ import annotations

from mae_ast.core.io.plural import plural


def test_plural_agrees_with_the_count() -> None:
    assert [plural(n, "clip") for n in (0, 1, 2, 1_250)] == [
        *("0 clips", "1 clip", "2 clips", "1,250 clips"),
    ]
    assert [plural(n, "class", "classes") for n in (1, 2)] == ["1 class", "2 classes"]
