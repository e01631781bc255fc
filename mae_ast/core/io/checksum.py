"""Checksum of a file's content."""

from __future__ import annotations

import hashlib
from pathlib import Path

_BLOCK = 2**20  # bytes


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()  # hashlib.file_digest is new in Python 3.11
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
