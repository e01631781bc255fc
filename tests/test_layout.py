"""Layout of the package: rooms, and which of them import which."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import mae_ast

PACKAGE = Path(mae_ast.__file__).parent
ROOMS = sorted(path.parent for path in PACKAGE.rglob("__init__.py") if path.parent != PACKAGE)
CORE_ORDER = ("io", "frontend", "nn", "models", "checkpoints", "inference")


def imports(path: Path) -> set[str]:
    """Modules and names of this package that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.startswith("mae_ast.")}


def test_no_module_stands_loose_at_the_top():
    names = {path.stem for path in PACKAGE.glob("*.py")}
    assert names == {"__init__", "__main__", "launch", "plugin", "console"}
    core = {path.name for path in (PACKAGE / "core").glob("*.py")}
    assert core == {"__init__.py", "settings.py"}  # the rules of fields serve all rooms


@pytest.mark.parametrize("room", ROOMS, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_each_room_says_in_one_line_what_it_is(room):
    docstring = ast.get_docstring(ast.parse((room / "__init__.py").read_text(encoding="utf-8")))
    assert docstring is not None
    assert 20 < len(docstring.splitlines()[0]) <= 100
    assert docstring.splitlines()[0].endswith(".")


@pytest.mark.parametrize("room", CORE_ORDER)
def test_no_room_of_the_core_imports_upwards(room):
    above = tuple(f"mae_ast.core.{name}" for name in CORE_ORDER[CORE_ORDER.index(room) + 1 :])
    files = list((PACKAGE / "core" / room).rglob("*.py"))
    assert len(files) > 2
    for path in files:
        upwards = {name for name in imports(path) if name.startswith(above)}
        assert not upwards, path


def test_the_core_has_these_rooms():
    rooms = {path.name for path in (PACKAGE / "core").iterdir() if (path / "__init__.py").exists()}
    assert rooms == set(CORE_ORDER)
