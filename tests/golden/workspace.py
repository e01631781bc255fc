"""A folder to work in: copies of the stored files, and the audio that their manifests list."""

from __future__ import annotations

import contextlib
import io
import shutil
import sys
from pathlib import Path
from unittest import mock

from . import corpus

FILES = Path(__file__).with_name("files")
PLACEHOLDER = "/golden"  # stands for the folder to work in, in stored files
# The file of this address, as it lies in the cache of downloads once it was downloaded.
URL = "https://example.org/golden.pt"
CACHED = "golden-2dd90af8b6dd.pt"


def fill(root: Path) -> Path:
    """Copy the stored files into ``root``, and write the audio."""
    shutil.copytree(FILES, root, dirs_exist_ok=True)
    for path in root.rglob("*.json"):
        path.write_text(path.read_text().replace(PLACEHOLDER, str(root)))
    corpus.write_audio(root / "data")
    shutil.copyfile(root / "released" / "mae_ast.pt", root / "cache" / CACHED)
    return root


def mae_ast(*arguments: object) -> str:
    """Run a ``mae-ast`` command that does not train, and return what it prints."""
    from mae_ast.cli.main import main

    out = io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        mock.patch("sys.argv", ["mae-ast", *map(str, arguments)]),
    ):
        try:
            main()
        except SystemExit as end:
            if end.code:
                raise AssertionError(f"{sys.argv}: {end.code}") from None
    return out.getvalue()
