"""Wording of docstrings and help texts: they can be understood alone."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
FILES = sorted(
    path
    for folder in ("mae_ast", "scripts", "tests")
    for path in (REPOSITORY / folder).rglob("*.py")
)
RIDDLES = {"What", "Where", "Whether", "How", "Of"}
# Everyday words for which the field has terms, such as "resume", "skip", "metrics", "std", "dtype".
AVOIDED = re.compile(
    r"goes on|gone on|left out|\bfigures\b|told apart|filled up|of no matter|elders|neighbour"
    r"|likewise|deviation|number format|what it was begun with",
    re.IGNORECASE,
)
PROSE = sorted(
    path
    for name in ("mae_ast", "config", "scripts", "README.md", "docs")
    for path in ([REPOSITORY / name] if name.endswith(".md") else (REPOSITORY / name).rglob("*"))
    if path.suffix in {".py", ".yaml", ".md", ".sh"}
)
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and (text := ast.get_docstring(node)):
            yield getattr(node, "lineno", 1), text


def text_of(value: ast.AST | None) -> str:
    """Return a literal's text, with ``{}`` for the values of an f-string."""
    if isinstance(value, ast.JoinedStr):
        return "".join(text_of(part) or "{}" for part in value.values)
    is_text = isinstance(value, ast.Constant) and isinstance(value.value, str)
    return value.value if is_text else ""


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
            if name == "help" and (text := text_of(value)):
                yield getattr(value, "lineno", 0), text


def is_riddle(help_text: str) -> bool:
    too_short = len(re.findall(r"\w+", help_text)) < 3
    return too_short or re.match(r"(of|likewise)\b", help_text, re.IGNORECASE) is not None


def test_docstrings_and_help_texts_name_their_subject():
    found = []
    for path in FILES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        riddles = [each for each in docstrings(tree) if each[1].split()[0] in RIDDLES]
        riddles += [each for each in help_texts(tree) if is_riddle(each[1])]
        found += [f"{path.relative_to(REPOSITORY)}:{line}: {text}" for line, text in riddles]
    assert found == []


def test_no_avoided_word_is_left():
    found = [
        f"{path.relative_to(REPOSITORY)}:{number}: {line.strip()}"
        for path in PROSE
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if AVOIDED.search(line)
    ]
    assert len(PROSE) > 200
    assert not found
