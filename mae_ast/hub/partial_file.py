"""A file that is not whole yet: ``<name>.part``, and in ``<name>.part.json`` where it came from."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class DownloadError(OSError):
    """A file that could not be had; the message is one line that says why."""


@dataclasses.dataclass(frozen=True)
class Source:
    """Where the bytes of a part came from.

    Args:
        url: the mirror.
        validator: by which its server knows this version of the file; ``None``: it does not.
        total: length of the whole file in bytes, if known.
    """

    url: str
    validator: str | None
    total: int | None


class PartialFile:
    """The part of a file that was received, beside where the whole file will lie.

    Args:
        target: the path of the whole file.
    """

    def __init__(self, target: Path) -> None:
        self.name = target.name
        self.path = target.with_name(f"{target.name}.part")
        self._notes = target.with_name(f"{target.name}.part.json")

    @property
    def size(self) -> int:
        """Bytes that are there; 0 without a file."""
        return self.path.stat().st_size if self.path.exists() else 0

    def source(self, url: str) -> Source | None:
        """Where the part came from, if it can be resumed from this mirror."""
        try:
            source = Source(**json.loads(self._notes.read_text()))
            fits = 0 < self.size <= (source.total or self.size)
        except (OSError, ValueError, TypeError):
            return None
        return source if fits and source.validator and source.url == url else None

    def begin(self, source: Source) -> None:
        """Begin anew with what comes from ``source``."""
        self.discard()
        self._notes.write_text(json.dumps(dataclasses.asdict(source)))

    def finish(self, path: str) -> None:
        """Move the part, which is whole now, to ``path`` on the same disk."""
        self.path.replace(path)
        self.discard()

    def discard(self) -> None:
        """Remove the part."""
        self.path.unlink(missing_ok=True)
        self._notes.unlink(missing_ok=True)

    @contextmanager
    def room_for(self, total: int | None) -> Iterator[None]:
        """Make sure that a file of ``total`` bytes fits; where it does not, the part is removed.

        Raises:
            DownloadError: the disk is full, or gets full inside of the context.
        """
        try:
            usage = shutil.disk_usage(self.path.parent)
            # A file system that does not know its size says 0.
            if total is not None and usage.total and total - self.size > usage.free:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            yield
        except OSError as error:
            if error.errno not in _DISK_FULL:
                raise
            self.discard()
            folder = self.path.parent
            free = readable(shutil.disk_usage(folder).free)
            raise DownloadError(
                f"{folder}: {(error.strerror or 'disk full').lower()}: {self.name} needs "
                f"{f'more than {free}' if total is None else readable(total)}, {free} are free"
            ) from error


def readable(size: int) -> str:
    """A number of bytes for people, such as 1.23GB."""
    return f"{tqdm.format_sizeof(size, divisor=1000)}B"
