"""Expose a byte range of a file as a file object, read on demand."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from typing import Any


class Section(io.RawIOBase):
    """A byte range of a file, with its own read position.

    Args:
        read: function of ``(offset, length)`` that reads the file; fewer bytes at its end.
        offset: start of the range, in bytes.
        length: size of the range, in bytes.
        name: file name; FFmpeg uses its suffix as a hint.
    """

    def __init__(
        self, read: Callable[[int, int], bytes], offset: int, length: int, name: str
    ) -> None:
        self.name = name
        self._read, self._offset, self._length, self._position = read, offset, length, 0

    def readable(self) -> bool:
        """Return True: sections can be read."""
        return True

    def seekable(self) -> bool:
        """Return True: sections support seeking."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Set the position and return it."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._length}[whence]
        self._position = max(0, start + offset)
        return self._position

    def tell(self) -> int:
        """Return the current position."""
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Read bytes into a buffer from the current position; return their number, 0 at the end."""
        length = min(len(buffer), max(0, self._length - self._position))
        content = self._read(self._offset + self._position, length)
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)
