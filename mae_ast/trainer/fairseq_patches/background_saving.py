"""Write checkpoints in a thread while training continues (``task.save_in_background``).

fairseq's function copies the state, chooses the names of a checkpoint and the old ones to remove.
Here the state is copied to host memory, even if it is there, since the optimizer changes it in
place. What the function does to files is recorded, and done in the same order by a thread.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from fairseq import checkpoint_utils, utils
from fairseq.file_io import PathManager

from mae_ast.trainer.fairseq_patches.replaced import replaced

Job = Callable[[], object]


class Writer:
    """Thread that does the jobs of one save. The program does not end before the thread."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, jobs: Sequence[Job]) -> None:
        """Do jobs one after the other, until one fails; :meth:`wait` for earlier ones before."""
        assert self._thread is None
        # The list is emptied, since its first job holds the state.
        self._thread = threading.Thread(target=self._run, args=(list(jobs),), name="saving")
        self._thread.start()

    def wait(self) -> BaseException | None:
        """Wait for the jobs; return and forget the error of the one that failed."""
        if self._thread is not None:
            self._thread.join()
        error, self._thread, self._error = self._error, None, None
        return error

    @property
    def is_started(self) -> bool:
        """``True`` from :meth:`start` to the end of :meth:`wait`, even if all jobs are done."""
        return self._thread is not None

    @property
    def has_failed(self) -> bool:
        """``True`` if a job has failed, until :meth:`wait` returns its error."""
        return self._error is not None

    def _run(self, jobs: list[Job]) -> None:
        try:
            while jobs:
                jobs.pop(0)()
        except BaseException as error:  # raised by the main thread, which waits for this one
            self._error = error


writer = Writer()  # of this process


@contextmanager
def recording() -> Iterator[list[Job]]:
    """Record what fairseq's ``save_checkpoint`` does to files, instead of doing it.

    No recorded job may be left from an earlier save, since the function looks at the files.
    """
    jobs: list[Job] = []
    new: set[str] = set()
    write, copy, listed = checkpoint_utils.torch_persistent_save, PathManager.copy, PathManager.ls

    def write_later(state: Any, filename: str, async_write: bool = False) -> None:
        jobs.append(partial(write, state, filename))
        new.add(os.path.basename(filename))

    def copy_later(src_path: str, dst_path: str, overwrite: bool = False) -> str:
        jobs.append(partial(copy, src_path, dst_path, overwrite))
        new.add(os.path.basename(dst_path))
        return dst_path

    def list_with_new(path: str) -> list[str]:  # all checkpoints are in one folder
        return sorted(new.union(listed(path)))

    # ``os`` in fairseq's function. It removes listed files only.
    files = SimpleNamespace(
        makedirs=os.makedirs,
        path=SimpleNamespace(join=os.path.join, lexists=lambda path: True),
        remove=lambda path: jobs.append(partial(os.remove, path)),
    )
    with (
        replaced(checkpoint_utils, torch_persistent_save=write_later, os=files),
        replaced(PathManager, copy=copy_later, ls=list_with_new),
        replaced(utils, move_to_cpu=copy_to_host),
    ):
        yield jobs


def copy_to_host(state: Any) -> Any:
    """Copy a state's containers and tensors, these to host memory, in float32 if 16 bits wide."""

    def copied(tensor: torch.Tensor) -> torch.Tensor:
        is_half = tensor.dtype in (torch.float16, torch.bfloat16)  # as fairseq's move_to_cpu
        dtype = torch.float32 if is_half else tensor.dtype
        return tensor.detach().to("cpu", dtype, copy=True)

    return utils.apply_to_sample(copied, state)
