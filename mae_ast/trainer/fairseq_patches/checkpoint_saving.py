"""Write checkpoints atomically, and each state once.

A state may have several names (``checkpoint_2_30.pt``, ``checkpoint_best.pt``,
``checkpoint_last.pt``), which are hard links if the file system supports them. A file is therefore
never written in place: each write creates a new file and renames it.
"""

from __future__ import annotations

import errno
import itertools
import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from fairseq import checkpoint_utils
from fairseq.file_io import PathManager
from torch.utils._pytree import tree_leaves

from mae_ast.console import readable
from mae_ast.core.checkpoints.run_files import LAST, list_checkpoints
from mae_ast.core.io.atomic import atomic_write
from mae_ast.trainer import ranks
from mae_ast.trainer.fairseq_patches.background_saving import recording, writer

NOTE = "last_save.json"  # a run's progress, in case its last checkpoint is lost
_CRASH = "crash.pt"  # written when training diverges, for inspection
_RETRY_DELAYS_S = (2.5, 2.5)  # before a failed write is retried
_PERMANENT = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT)

_numbers = itertools.count()  # of messages between ranks

logger = logging.getLogger(__name__)


class SavingError(OSError):
    """A checkpoint could not be written; no partial file is left."""


def apply() -> None:
    """Replace fairseq's functions."""
    # A failed write ends in a traceback and leaves a truncated file, and a retry appends to it.
    # Remove when fairseq retries with an empty file.
    checkpoint_utils.torch_persistent_save = _save_atomically(
        checkpoint_utils.torch_persistent_save
    )

    # checkpoint_last.pt is a plain copy of the file just saved: it takes the same space again, and
    # stays truncated if the run is killed meanwhile. Remove when fairseq links and renames files.
    PathManager.copy = staticmethod(link_or_copy)

    # One rank saves; if it fails, the other ranks wait for it in the next step. Remove when fairseq
    # informs them.
    checkpoint_utils.save_checkpoint = _on_all_ranks(checkpoint_utils.save_checkpoint)
    checkpoint_utils.verify_checkpoint_directory = _with_clear_error(
        checkpoint_utils.verify_checkpoint_directory
    )


def link_or_copy(src_path: str, dst_path: str, overwrite: bool = False) -> str:
    """Give a file a second name; copy it if hard links are not supported.

    Raises:
        FileExistsError: the name is taken, and ``overwrite`` is not set.
        SavingError: the disk is full, or the file cannot be written for another reason.
    """
    if os.path.exists(dst_path) and not overwrite:
        raise FileExistsError(dst_path)
    part = f"{dst_path}.tmp"
    _remove(part)
    try:
        try:
            os.link(src_path, part)
        except OSError:  # FAT and some network file systems have none
            shutil.copyfile(src_path, part)
        os.replace(part, dst_path)
    except OSError as error:
        _remove(part)
        size = os.path.getsize(src_path)
        raise SavingError(_message(dst_path, error, size)) from error
    _remove(part)  # left if both names already were the same file
    return dst_path


def remove_leftovers(folder: Path) -> None:
    """Remove truncated files of a run that was killed while it saved."""
    for part in folder.glob("checkpoint*.pt.tmp"):
        _remove(part)


def recorded_updates(folder: Path) -> int:
    """Return the number of updates at the last save; 0 if unknown."""
    try:
        return int(json.loads((folder / NOTE).read_text(encoding="utf-8"))["num_updates"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _save_atomically(write: Callable[..., None]) -> Callable[..., None]:
    def save(state: Any, filename: str, async_write: bool = False) -> None:
        if async_write or not PathManager.supports_rename(filename):
            write(state, filename, async_write)
            return
        try:
            _write_with_retries(state, filename)
        except OSError as error:
            message = _message(filename, error, _size(state))
            if os.path.basename(filename) != _CRASH:
                raise SavingError(message) from error
            logger.warning("%s", message)  # no error, which would hide why training diverged

    return save


def _write_with_retries(state: Any, filename: str) -> None:
    """Write a file; retry after transient errors, as on a network file system."""
    for delay_s in _RETRY_DELAYS_S:
        try:
            _write(state, filename)
        except OSError as error:
            if error.errno in _PERMANENT:
                raise
            logger.warning("%s: %s; retrying", filename, error.strerror or error)
            time.sleep(delay_s)
        else:
            return
    _write(state, filename)


def _write(state: Any, filename: str) -> None:
    """Write a file atomically: under a temporary name, then rename it.

    Raises:
        OSError: it could not be written; no partial file is left.
    """
    part = f"{filename}.tmp"
    _remove(part)
    try:
        with open(part, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())  # a power failure must not leave an empty file
        os.replace(part, filename)
    except BaseException as error:
        _remove(part)
        if isinstance(error, RuntimeError) and (cause := _os_error(error)) is not None:
            raise cause from error
        raise


def _os_error(error: BaseException | None) -> OSError | None:
    """Return the ``OSError`` that caused an error of torch, if any."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def finish(num_updates: int) -> None:
    """Wait until the last checkpoint is written, on all ranks.

    Args:
        num_updates: number of updates so far.

    Raises:
        ValueError: it could not be written.
    """
    if writer.is_started:
        _report(writer.wait(), num_updates)


def _on_all_ranks(save_checkpoint: Callable[..., Any]) -> Callable[..., Any]:
    def wrapper(cfg: Any, trainer: Any, *args: Any, **kwargs: Any) -> Any:
        num_updates = trainer.get_num_updates()
        finish(num_updates)
        if getattr(trainer.cfg.task, "save_in_background", False) and not cfg.no_save:
            with recording() as jobs:
                saved = save_checkpoint(cfg, trainer, *args, **kwargs)
            if saved is not None:
                jobs.append(partial(_record_save, saved, num_updates))
            writer.start(jobs)
            return saved
        saved, problem = None, None
        try:
            saved = save_checkpoint(cfg, trainer, *args, **kwargs)
        except SavingError as error:
            problem = error
        if not cfg.no_save:
            _report(problem, num_updates)
        if saved is not None:
            _record_save(saved, num_updates)
        return saved

    return wrapper


def _report(problem: BaseException | None, num_updates: int) -> None:
    """Raise the error of a save on all ranks; rank 0 has made it."""

    def outcome() -> bytes:
        if problem is not None:
            raise problem
        return b""

    try:
        ranks.from_first(f"mae_ast/saved/{next(_numbers)}", outcome)
        outcome()
    except (SavingError, ValueError) as error:
        raise ValueError(f"ended at update {num_updates}: {error}") from None


def _record_save(path: str, num_updates: int) -> None:
    name = os.path.basename(path)
    if name != LAST:  # not logged: it is saved after each epoch
        logger.info("update %d: saved %s", num_updates, name)
    _record_progress(Path(path).parent, num_updates)


def _with_clear_error(verify: Callable[[str], None]) -> Callable[[str], None]:
    def wrapper(save_dir: str) -> None:
        try:
            verify(save_dir)
        except OSError as error:
            raise ValueError(
                f"checkpoint.save_dir={save_dir}: cannot be written to ({error.strerror or error})"
            ) from error

    return wrapper


def _record_progress(folder: Path, num_updates: int) -> None:
    with suppress(OSError), atomic_write(folder / NOTE) as part:
        part.write_text(json.dumps({"num_updates": num_updates}) + "\n", encoding="utf-8")


def _message(filename: str, error: OSError, num_bytes: int) -> str:
    path = Path(filename).absolute()
    reason = (error.strerror or str(error)).lower()
    before = ""
    if list_checkpoints(path.parent):
        before = "; earlier checkpoints are complete, and the same command resumes from them"
    return (
        f"{path}: not saved ({reason}; {readable(num_bytes)} needed, {_free(path.parent)} "
        f"free){before}"
    )


def _free(folder: Path) -> str:
    try:
        return readable(shutil.disk_usage(folder).free)
    except OSError:
        return "0B"


def _size(state: Any) -> int:
    """Return the number of bytes of a state's tensors."""
    return sum(each.nbytes for each in tree_leaves(state) if isinstance(each, torch.Tensor))


def _remove(path: str | Path) -> None:
    with suppress(OSError):
        os.unlink(path)
