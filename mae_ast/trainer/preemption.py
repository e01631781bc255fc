"""Graceful shutdown: on SIGTERM, SIGUSR1 or SIGINT, or when too many files are bad, save and exit.

A stop request (:mod:`mae_ast.trainer.stop_request`), or that a checkpoint could not be written in
the background, is sent with the logged values, which all ranks sum in each step, so all ranks stop
after the same step. Then a checkpoint is saved and the process
exits with status 0, ready to be requeued.
"""

from __future__ import annotations

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
from mae_ast.trainer.fairseq_patches import background_saving
from mae_ast.trainer.stop_request import SIGNALS


def heed_only_the_trainer() -> None:
    """End a data loader's worker on a signal from the trainer, and ignore all others.

    A cluster or a terminal signals all processes at once, and a trainer that has lost its workers
    cannot finish its step. Call it before the worker starts threads, so that these block the
    signals, too.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)

    def wait() -> None:
        while signal.sigwaitinfo(SIGNALS).si_pid != os.getppid():
            pass
        # The worker's folder of sockets, which multiprocessing removes on a regular exit.
        folder = multiprocessing.current_process()._config.get("tempdir")  # type: ignore[attr-defined]
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


class InterruptibleTask(FairseqTask):  # type: ignore[misc]
    """Base class of this project's tasks: training stops on request."""

    # Equal on all ranks after each step.
    should_stop = False
    failed = False  # stops because of an error

    def before_exit(self) -> None:
        """Report an error that stops training; called after the checkpoint is saved.

        Raises:
            SystemExit: with a message, if training stops because of an error.
        """

    def train_step(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, int, dict[str, Any]]:
        """Run fairseq's step, and add this rank's stop request to the logged values."""
        stop_request.begin_update()
        loss, sample_size, logging_output = super().train_step(*args, **kwargs)
        stops = stop_request.is_requested() or background_saving.writer.has_failed
        logging_output["stop_requested"] = float(stops)
        return loss, sample_size, logging_output

    def reduce_metrics(self, logging_outputs: Sequence[dict[str, Any]], criterion: Any) -> None:
        """Reduce fairseq's metrics, and combine the stop requests of all ranks."""
        super().reduce_metrics(logging_outputs, criterion)
        if criterion.training:
            stop_request.end_update()
        self.should_stop |= any(float(log.get("stop_requested", 0)) for log in logging_outputs)
