"""Find the checkpoints in the folder of a run, and the newest intact one.

Names are fairseq's: ``checkpoint_last.pt``, ``checkpoint_best.pt``, ``checkpoint3.pt`` (epoch),
``checkpoint_3_500.pt`` (epoch and update), ``checkpoint.best_loss_1.50.pt`` (one of the best).
"""

from __future__ import annotations

import logging
import os
import re
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mae_ast.core.checkpoints.state_files import CheckpointError, read_state

LAST = "checkpoint_last.pt"
_NAME = re.compile(r"checkpoint(?:_last|_best|\d+|_\d+_(?P<updates>\d+)|\.best_.+)\.pt")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SavedState:
    """A checkpoint that can be read.

    Args:
        path: path of the file.
        num_updates: number of updates; 0 if the file does not contain it.
        has_optimizer: the file contains the optimizer state, so training can resume from it.
    """

    path: Path
    num_updates: int
    has_optimizer: bool


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a run, recognised by their names, without opening them."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))


def updates_by_name(path: Path) -> int:
    """Return the number of updates in a file's name; 0 if it contains none."""
    found = _NAME.fullmatch(path.name)
    return int((found and found["updates"]) or 0)


def read_saved(path: Path) -> SavedState:
    """Read the metadata of a checkpoint, but not its tensors.

    Raises:
        CheckpointError: the file is truncated, or not a checkpoint.
    """
    state = read_state(path)
    try:
        history = state.get("optimizer_history") or [{}]
        num_updates = int(history[-1].get("num_updates", 0))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its optimizer_history is damaged") from error
    has_optimizer = state.get("last_optimizer_state") is not None and "extra_state" in state
    return SavedState(path, num_updates, has_optimizer)


def newest_whole(folder: Path, with_optimizer: bool = False) -> SavedState | None:
    """Return the intact checkpoint with the most updates.

    Files are read in full and verified against the checksums they contain.

    Args:
        folder: folder of the checkpoints.
        with_optimizer: consider only checkpoints that training can resume from.

    Returns:
        ``None`` if there is no intact checkpoint.
    """
    readable = [saved for saved in _readable(folder) if saved.has_optimizer or not with_optimizer]
    readable.sort(key=lambda saved: saved.num_updates, reverse=True)
    return next((saved for saved in readable if _is_intact(saved.path)), None)


def latest(folder: Path) -> Path | None:
    """Return ``checkpoint_last.pt``, or the newest intact checkpoint if that cannot be read.

    Returns:
        ``None`` if the folder has no checkpoint.

    Raises:
        CheckpointError: the folder has checkpoints, but all are damaged.
    """
    last = folder / LAST
    if last.is_file():
        try:
            return read_saved(last).path
        except CheckpointError as error:
            problem = str(error)
    elif list_checkpoints(folder):
        problem = f"{last}: no such file"
    else:
        return None
    saved = newest_whole(folder)
    if saved is None:
        raise CheckpointError(f"{problem}; no other checkpoint in {folder} is intact")
    logger.warning("%s; using %s (update %d)", problem, saved.path.name, saved.num_updates)
    return saved.path


def _readable(folder: Path) -> Iterator[SavedState]:
    seen = set()
    for path in list_checkpoints(folder):
        try:
            status = os.stat(path)
            if (status.st_dev, status.st_ino) in seen:  # a hard link to the same file
                continue
            seen.add((status.st_dev, status.st_ino))
            yield read_saved(path)
        except (CheckpointError, OSError) as error:
            logger.warning("skipping a damaged checkpoint: %s", error)


def _is_intact(path: Path) -> bool:
    """Verify the checksums stored by ``torch.save``; files in its old format have none."""
    if not zipfile.is_zipfile(path):
        return True
    try:
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
    except (OSError, zipfile.BadZipFile, zlib.error) as error:
        logger.warning("skipping a damaged checkpoint: %s: %s", path, error)
        return False
    if damaged is not None:
        logger.warning("skipping a damaged checkpoint: %s: %s has a wrong checksum", path, damaged)
    return damaged is None
