"""Wording of docstrings and help texts: they can be understood alone."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
FILES = sorted(
    path
    for folder in ("mae_ast", "scripts", "tests")
    for path in (REPOSITORY / folder).rglob("*.py")
)
RIDDLES = {"What", "Where", "Whether", "How", "Of"}
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and (text := ast.get_docstring(node)):
            yield getattr(node, "lineno", 1), text


def help_texts(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Texts of ``help=...`` and of ``{"help": ...}``."""
    for node in ast.walk(tree):
        pairs: list[tuple[object, ast.AST | None]] = []
        if isinstance(node, ast.keyword):
            pairs = [(node.arg, node.value)]
        elif isinstance(node, ast.Dict):
            pairs = [
                (getattr(key, "value", None), value)
                for key, value in zip(node.keys, node.values, strict=True)
            ]
        for name, value in pairs:
            if name == "help" and isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield value.lineno, value.value


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_docstrings_and_help_texts_name_their_subject(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    riddles = [(line, text) for line, text in docstrings(tree) if text.split()[0] in RIDDLES]
    assert not riddles, path
    for line, text in help_texts(tree):
        assert len(re.findall(r"\w+", text)) >= 3, (line, text)
        assert not re.match(r"(of|likewise)\b", text, re.IGNORECASE), (line, text)
