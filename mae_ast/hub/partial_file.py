"""Partial downloads: ``<name>.part``, and its source in ``<name>.part.json``."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mae_ast.console import readable

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class DownloadError(OSError):
    """A download that failed; the message gives the reason in one line."""


@dataclasses.dataclass(frozen=True)
class Source:
    """Source of a partial file.

    Args:
        url: URL of the mirror.
        validator: ETag or Last-Modified of this version of the file; ``None`` if there is none.
        total: size of the complete file in bytes, if known.
    """

    url: str
    validator: str | None
    total: int | None


class PartialFile:
    """The part of a file received so far, in the folder of the complete file.

    Args:
        target: path of the complete file.
    """

    def __init__(self, target: Path) -> None:
        self.name = target.name
        self._target = target
        self.path = target.with_name(f"{target.name}.part")
        self._source_file = target.with_name(f"{target.name}.part.json")

    @property
    def size(self) -> int:
        """Size in bytes; 0 if there is no partial file."""
        return self.path.stat().st_size if self.path.exists() else 0

    def source(self, url: str) -> Source | None:
        """Return the source of the partial file if it can be resumed from this mirror."""
        try:
            source = Source(**json.loads(self._source_file.read_text()))
            fits = 0 < self.size <= (source.total or self.size)
        except (OSError, ValueError, TypeError):
            return None
        return source if fits and source.validator and source.url == url else None

    def begin(self, source: Source) -> None:
        """Discard the partial file and start a new one from ``source``."""
        self.discard()
        self._source_file.write_text(json.dumps(dataclasses.asdict(source)))

    def finish(self) -> None:
        """Move the completed file to its final path."""
        self.path.replace(self._target)
        self.discard()

    def discard(self) -> None:
        """Remove the partial file."""
        self.path.unlink(missing_ok=True)
        self._source_file.unlink(missing_ok=True)

    @contextmanager
    def room_for(self, total: int | None) -> Iterator[None]:
        """Check that the disk has room for a file of ``total`` bytes; else remove the partial file.

        Raises:
            DownloadError: the disk is full, or becomes full within the context.
        """
        try:
            usage = shutil.disk_usage(self.path.parent)
            # File systems of unknown size report 0.
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
