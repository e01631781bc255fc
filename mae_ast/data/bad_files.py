"""Count the good and bad files that a training reads.

Data workers store in each batch the files that they read for it (:class:`FilesRead`); the
trainer's process counts them when the batch is used. In an epoch each file is in one batch of one
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
AT_LEAST = 20  # so many bad files never stop a run


@dataclass(frozen=True)
class BadFile:
    """Placeholder for a clip whose file cannot be used.

    Args:
        id: its row in the manifest.
        why: reason.
        turn: how often the clip came up before in this epoch.
    """

    id: int
    why: str
    turn: int = 0


@dataclass(frozen=True)
class FilesRead:
    """The files that were read for a batch.

    Args:
        split: name of the data set.
        good: rows of those that were read, each once in an epoch.
        bad: those that cannot be used; :attr:`BadFile.turn` says whether for the first time.
    """

    split: str
    good: list[int]
    bad: list[BadFile]


class BadFiles:
    """Counts of a manifest's files that this process reads.

    Args:
        manifest: manifest whose rows are counted.
        max_fraction: maximum ratio of bad files among the files read in an epoch.
    """

    def __init__(self, manifest: Manifest, max_fraction: float) -> None:
        self.manifest = manifest
        self.max_fraction = max_fraction
        self._state = np.zeros(len(manifest), dtype=np.uint8)
        self.logged = np.zeros(len(manifest), dtype=np.uint8)  # 1: a message named the row's file

    def begin_epoch(self) -> None:
        """Reset the counts: an epoch reads all files again."""
        self._state.fill(_UNREAD)

    def add(self, read: FilesRead) -> None:
        """Count the files of a batch; log each bad one the first time."""
        self._state[read.good] = _GOOD
        for file in read.bad:
            if file.turn == 0:
                self._state[file.id] = _BAD
            if not self.logged[file.id]:
                self.logged[file.id] = 1
                logger.warning("skipping bad file: %s (%s)", file.why, self.manifest.where(file.id))

    @property
    def rows(self) -> list[int]:
        """Rows of the bad files."""
        bad: list[int] = np.flatnonzero(self._state == _BAD).tolist()
        return bad

    def counts(self) -> tuple[int, int]:
        """Return the number of bad files and of files read, good or bad."""
        return int(np.count_nonzero(self._state == _BAD)), int(np.count_nonzero(self._state))

    def problem(self, num_bad: int, num_read: int, num_used: int) -> str:
        """Return why training must stop because of bad files; '' if it may continue.

        Args:
            num_bad: bad files that all processes found in this epoch.
            num_read: files that they read, good or bad.
            num_used: files that an epoch reads.
        """
        most = max(AT_LEAST, self.max_fraction * num_read)
        if num_bad <= most and not num_bad >= num_used > 0:
            return ""
        return (
            f"{self.manifest.path}: {num_bad} of {plural(num_read, 'file')} read "
            f"{'is' if num_bad == 1 else 'are'} bad: all, or more than max({AT_LEAST}, "
            f"{self.max_fraction:g} of them); mend the manifest or raise task.max_bad_fraction"
        )
