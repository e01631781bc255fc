"""Distinguish paths from names and hub ids among the sources of a model."""

from __future__ import annotations

import os
import re

SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")


def is_path(source: str) -> bool:
    """Return whether a source is meant as a path, even if the file does not exist.

    Paths have the suffix of a checkpoint, are absolute, begin with a dot or a tilde, contain
    several slashes, or begin with a folder that exists; hub ids are ``owner/name``.
    """
    if re.match(r"\w+:", source):  # a URL, or timm:NAME
        return False
    folder, slash, name = source.partition("/")
    return (
        source.endswith((*SUFFIXES, "/"))
        or source.startswith((".", "/", "~"))
        or "/" in name
        or bool(slash and os.path.isdir(folder))
    )
