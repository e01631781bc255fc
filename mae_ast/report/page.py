"""Write a page: one HTML file with its styles, scripts and values, which needs no network.

Values are in a JSON block, from which the scripts build the page as text nodes; names of files and
labels are therefore never read as HTML.
"""

from __future__ import annotations

import html
import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

from mae_ast.core.io.atomic import atomic_write

SCRIPTS = (
    *("elements.js", "sounds.js", "study.js", "curves.js", "spectrograms.js", "scatter.js"),
    "page.js",
)
# Characters that end a script block or a line of JavaScript.
_ESCAPES = {
    "<": "\\u003c",
    ">": "\\u003e",
    "&": "\\u0026",
    "\u2028": "\\u2028",
    "\u2029": "\\u2029",
}


def page_of(values: dict[str, Any]) -> str:
    """Return the page of :func:`mae_ast.report.contents.contents`."""
    data = json.dumps(values, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character, escape in _ESCAPES.items():
        data = data.replace(character, escape)
    parts = {
        "title": html.escape(str(values["title"])),
        "style": _part("page.css"),
        "data": data,
        "script": "\n".join(_part(name) for name in SCRIPTS),
    }
    # At once, so that values may look like the names of parts.
    return re.sub(r"\{\{(\w+)\}\}", lambda name: parts[name[1]], _part("page.html"))


def write_page(values: dict[str, Any], path: Path) -> int:
    """Write the page; return its size in bytes.

    Raises:
        OSError: the file cannot be written.
    """
    text = page_of(values).encode("utf-8", errors="replace")
    with atomic_write(path) as part:
        part.write_bytes(text)
    return len(text)


def _part(name: str) -> str:
    return (files(__package__) / "page" / name).read_text(encoding="utf-8")
