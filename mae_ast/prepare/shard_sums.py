"""Write ``SHA256SUMS`` beside packed shards; ``sha256sum --check SHA256SUMS`` reads it, too."""

from __future__ import annotations

import re
from pathlib import Path

from mae_ast.core.io.atomic import atomic_write, wait_for_lock
from mae_ast.core.io.checksum import sha256
from mae_ast.core.io.remote.sums import SUMS_FILE, format_sums, parse_sums


def write_sums(folder: Path, split: str, renew: bool) -> None:
    """List the shards of a split; those of other splits stay.

    Args:
        folder: folder of the shards.
        split: prefix of their names.
        renew: list them again if they are listed.

    Raises:
        ValueError: the file is not in the format of ``sha256sum``.
        OSError: a shard cannot be read, or the file cannot be written.
    """
    path = folder / SUMS_FILE
    own = re.compile(rf"{re.escape(split)}-\d{{5}}\.tar")
    names = [each.name for each in folder.iterdir() if own.fullmatch(each.name)]
    if not renew and set(names) <= set(_read(path)):
        return
    sums = {name: sha256(folder / name) for name in names}
    with wait_for_lock(path):
        others = {name: digest for name, digest in _read(path).items() if not own.fullmatch(name)}
        with atomic_write(path) as part:
            part.write_text(format_sums(others | sums), encoding="utf-8")


def _read(path: Path) -> dict[str, str]:
    return parse_sums(path.read_text(encoding="utf-8"), str(path)) if path.exists() else {}
