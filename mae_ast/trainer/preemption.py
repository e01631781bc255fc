"""Graceful shutdown: on SIGTERM, SIGUSR1 or SIGINT, or when too many files are bad, save and exit.

A request (:mod:`mae_ast.trainer.stop_request`) travels with the logged values, which all ranks sum
in each step anyway, so all of them stop after the same step; then a checkpoint is saved and the
process exits with status 0, ready to be requeued.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Sequence
from typing import Any

import torch
from fairseq.tasks import FairseqTask

from mae_ast.trainer import stop_request
from mae_ast.trainer.stop_request import SIGNALS

logger = logging.getLogger(__name__)


def heed_only_the_trainer() -> None:
    """In a data loader's worker: end on SIGTERM from the trainer, not from the cluster.

    A cluster or a terminal signals all processes at once, and a trainer whose workers are gone
    cannot finish its step. Call it before the worker starts threads, so that they block the
    signals too.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)

    def wait() -> None:
        while signal.sigwaitinfo(SIGNALS).si_pid != os.getppid():
            pass
        # What multiprocessing removes at a worker's usual end: its folder of sockets.
        folder = multiprocessing.current_process()._config.get("tempdir")  # type: ignore[attr-defined]
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


class InterruptibleTask(FairseqTask):  # type: ignore[misc]
    """A task whose training can be asked to stop; base of this project's tasks."""

    # The same on all workers after each step.
    should_stop = False
    failed = False  # stops for an error

    def before_exit(self) -> None:
        """Called once the checkpoint of an early end is saved."""
        logger.info("saved and exited on a signal; the same command resumes")

    def train_step(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, int, dict[str, Any]]:
        """Fairseq's step, with this worker's wish to stop among the logged values."""
        stop_request.begin_update()
        loss, sample_size, logging_output = super().train_step(*args, **kwargs)
        logging_output["stop_requested"] = float(stop_request.is_requested())
        return loss, sample_size, logging_output

    def reduce_metrics(self, logging_outputs: Sequence[dict[str, Any]], criterion: Any) -> None:
        """fairseq's, and the workers' common decision."""
        super().reduce_metrics(logging_outputs, criterion)
        if criterion.training:
            stop_request.end_update()
        self.should_stop |= any(float(log.get("stop_requested", 0)) for log in logging_outputs)
