"""Tell paths from names and hub ids among the sources of a model."""

from __future__ import annotations

import os
import re

SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")


def is_path(source: str) -> bool:
    """Return whether a source is meant as a path, even if there is nothing.

    Paths have a checkpoint's suffix, are absolute or begin with a dot, have several slashes, or
    begin with a folder that exists; a hub id is ``owner/name``.
    """
    if re.match(r"\w+:", source):  # a URL, or a model of a package
        return False
    folder, slash, name = source.partition("/")
    return (
        source.endswith((*SUFFIXES, "/"))
        or source.startswith((".", "/", "~"))
        or "/" in name
        or bool(slash and os.path.isdir(folder))
    )
