"""First line of an error."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import mae_ast
from mae_ast.core.io.first_line import first_line


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("no such layer"), "no such layer"),
        (RuntimeError("\n  shapes differ\nTraceback of C++"), "shapes differ"),
        (OSError(), "OSError"),
        (KeyboardInterrupt("\n"), "KeyboardInterrupt"),
    ],
)
def test_first_line_of_message_or_name_of_class(error: BaseException, expected: str) -> None:
    assert first_line(error) == expected


def test_no_other_module_takes_an_error_apart() -> None:
    found = []
    for path in sorted(Path(mae_ast.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                text = ast.unparse(node)
                if "str(error)" in text and node.func.attr in ("splitlines", "partition"):
                    found.append(path.name)
    assert found == ["first_line.py"]
