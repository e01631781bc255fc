"""Files that turn out to be unusable during training: logged once, counted, left out.

The tally lives in shared memory, so that all worker processes and the trainer see the same one.
"""

from __future__ import annotations

import logging

import torch

from mae_ast.core.manifest import Manifest

logger = logging.getLogger(__name__)

_UNREAD, _GOOD, _BAD = 0, 1, 2
AT_LEAST = 20  # so many bad files never stop a run


class TooManyBadFilesError(ValueError):
    """More files are unusable than a run puts up with; the message lists them."""


class BadFiles:
    """Tally of a manifest's files.

    Args:
        manifest: whose rows are tallied.
        num_used: rows that are used at all; when all of those are bad, that is too many.
        max_fraction: share of the files read so far that may be bad.
    """

    def __init__(self, manifest: Manifest, num_used: int, max_fraction: float) -> None:
        self.manifest = manifest
        self.num_used = num_used
        self.max_fraction = max_fraction
        self._state = torch.zeros(len(manifest), dtype=torch.uint8).share_memory_()
        self._is_over = torch.zeros(1, dtype=torch.uint8).share_memory_()

    def is_bad(self, row: int) -> bool:
        """Whether this file was found bad before."""
        return bool(self._state[row] == _BAD)

    def add_good(self, row: int) -> None:
        """A file was read."""
        self._state[row] = _GOOD

    def add_bad(self, row: int, why: str) -> None:
        """A file cannot be used: log that once, and see whether there are too many."""
        self._state[row] = _BAD
        logger.warning("left out, bad file: %s (%s)", why, self.manifest.where(row))
        num_bad = int((self._state == _BAD).sum())
        most = max(AT_LEAST, self.max_fraction * self.num_read)
        if num_bad > most or num_bad == self.num_used:
            self._is_over[0] = 1

    @property
    def num_read(self) -> int:
        """Files read so far, good or bad."""
        return int((self._state != _UNREAD).sum())

    @property
    def rows(self) -> list[int]:
        """Rows of the bad files."""
        bad: list[int] = (self._state == _BAD).nonzero().flatten().tolist()
        return bad

    def check(self) -> None:
        """Stop where there are too many; cheap enough for each step.

        Raises:
            TooManyBadFilesError: with the list.
        """
        if not self._is_over[0]:
            return
        rows = self.rows
        paths = "\n  ".join(self.manifest.audio_path(row) for row in rows)
        raise TooManyBadFilesError(
            f"{self.manifest.path}: {len(rows)} of {self.num_read} files read are bad: all, or "
            f"more than max({AT_LEAST}, {self.max_fraction:g} of them); mend the manifest or raise "
            f"task.max_bad_fraction. They are:\n  {paths}"
        )
