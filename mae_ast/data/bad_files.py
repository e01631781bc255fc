"""Count the good and bad files that a run reads.

Data workers store in each batch the files that they read for it (:class:`FilesRead`), and the
trainer's process counts them when it uses the batch. In each epoch a file is in one batch of one
process, so the counts of all processes can be summed. Each epoch tries all files again, because
errors may be transient.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np

from mae_ast.core.io.manifest import Manifest
from mae_ast.core.io.plural import plural

logger = logging.getLogger(__name__)

_UNREAD, _GOOD, _BAD = 0, 1, 2
ALWAYS_TOLERATED = 20  # this many bad files never stop a run, unless they are all


@dataclass(frozen=True)
class BadFile:
    """Placeholder for a clip whose file cannot be used.

    Args:
        id: row of the clip in the manifest.
        reason: error message.
        repeat: number of times the clip was drawn before in this epoch.
        ends_run: the file could not be had, which says nothing about it: its server cannot be
            reached. Training stops at once, to be resumed later.
    """

    id: int
    reason: str
    repeat: int = 0
    ends_run: bool = False


@dataclass(frozen=True)
class FilesRead:
    """The files that were read for a batch.

    Args:
        split: name of the split.
        good: rows of the files that were read, each once in an epoch.
        bad: files that cannot be used, also when drawn again (:attr:`BadFile.repeat` above 0).
    """

    split: str
    good: list[int]
    bad: list[BadFile]


class BadFiles:
    """Counts of the good and bad files of a manifest that this process reads.

    Args:
        manifest: manifest whose rows are counted.
        max_fraction: maximum ratio of bad files among the files read in an epoch.
    """

    def __init__(self, manifest: Manifest, max_fraction: float) -> None:
        self.manifest = manifest
        self.max_fraction = max_fraction
        self._state = np.zeros(len(manifest), dtype=np.uint8)
        self.unreachable = ""  # why a file could not be had; "": all could
        self.logged = np.zeros(len(manifest), dtype=np.uint8)  # 1: the row was logged as bad

    def begin_epoch(self) -> None:
        """Reset the counts: an epoch reads all files again."""
        self._state.fill(_UNREAD)

    def add(self, read: FilesRead) -> None:
        """Count the files of a batch; log each bad one the first time."""
        self._state[read.good] = _GOOD
        for file in read.bad:
            if file.ends_run:
                if not self.unreachable:
                    self.unreachable = file.reason
                    logger.error("training ends: %s", file.reason)
                continue
            if file.repeat == 0:
                self._state[file.id] = _BAD
            if not self.logged[file.id]:
                self.logged[file.id] = 1
                where = self.manifest.where(file.id)
                logger.warning("skipping bad file: %s (%s)", file.reason, where)

    @property
    def rows(self) -> list[int]:
        """Rows of the bad files."""
        bad: list[int] = np.flatnonzero(self._state == _BAD).tolist()
        return bad

    def counts(self) -> tuple[int, int]:
        """Return the number of bad files and of files read, good or bad."""
        return int(np.count_nonzero(self._state == _BAD)), int(np.count_nonzero(self._state))

    def problem(self, num_bad: int, num_read: int, num_used: int) -> str:
        """Return an error if there are too many bad files to continue, else ''.

        Args:
            num_bad: bad files that all processes have found in this epoch.
            num_read: files that they have read, good or bad.
            num_used: files that a whole epoch reads.
        """
        limit = max(ALWAYS_TOLERATED, self.max_fraction * num_read)
        if num_bad <= limit and not num_bad >= num_used > 0:
            return ""
        return (
            f"{self.manifest.path}: {num_bad} of {plural(num_read, 'file')} read "
            f"{'is' if num_bad == 1 else 'are'} bad: all of the epoch's files, or more than "
            f"max({ALWAYS_TOLERATED}, {self.max_fraction:g} of the files read); fix the manifest "
            "or raise task.max_bad_fraction"
        )
