"""``SHA256SUMS``: the checksums of the shards in a folder, in the format of ``sha256sum``."""

from __future__ import annotations

import re

SUMS_FILE = "SHA256SUMS"

_LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](.+)")


def parse_sums(text: str, where: str) -> dict[str, str]:
    """Return the SHA-256 of each file name, in lower case.

    Args:
        text: content of the file.
        where: path or URL of the file, for messages.

    Raises:
        ValueError: a line is not in the format of ``sha256sum``.
    """
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        match = _LINE.fullmatch(line)
        if match is not None:
            found[match[2].removeprefix("./")] = match[1].lower()
        elif line.strip():
            raise ValueError(
                f"{where}:{number}: {line[:80]!r} is not in the format of sha256sum; expected 64 "
                "hexadecimal digits, two spaces and a file name"
            )
    return found


def format_sums(sums: dict[str, str]) -> str:
    """Return the content of the file, sorted by name."""
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items()))
