"""A stretch of a file as a file of its own, read on demand."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from typing import Any


class Section(io.RawIOBase):
    """A stretch of a file, with a position of its own.

    Args:
        read: reads ``(offset, length)`` of the file; fewer bytes where it ends.
        offset: where the stretch begins, in bytes.
        length: of the stretch, in bytes.
        name: its suffix is a hint to FFmpeg.
    """

    def __init__(
        self, read: Callable[[int, int], bytes], offset: int, length: int, name: str
    ) -> None:
        self.name = name
        self._read, self._offset, self._length, self._place = read, offset, length, 0

    def readable(self) -> bool:
        """Return that it is open for reading."""
        return True

    def seekable(self) -> bool:
        """Return that any place can be read."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a place; return it."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._length}[whence]
        self._place = max(0, start + offset)
        return self._place

    def tell(self) -> int:
        """Return the current place."""
        return self._place

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer from the current place; return the number of bytes, 0 at the end."""
        length = min(len(buffer), max(0, self._length - self._place))
        content = self._read(self._offset + self._place, length)
        buffer[: len(content)] = content
        self._place += len(content)
        return len(content)
