"""What fairseq 0.12.3 needs to behave on today's machines; each repair says when it can go."""

from __future__ import annotations

import atexit
import logging
import math
import os
import queue
import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import fairseq_cli.hydra_train
import fairseq_cli.train
import torch
import torch.utils.data._utils
from fairseq import checkpoint_utils
from fairseq.data.iterators import BackgroundConsumer
from fairseq.nan_detector import NanDetector
from fairseq.optim.fp16_optimizer import FP16Optimizer
from omegaconf.errors import OmegaConfBaseException

from mae_ast.console import user_errors
from mae_ast.optim.adamw import MARKED_OPTIMIZER, MARKS
from mae_ast.trainer.best_metric import choose_metric
from mae_ast.trainer.fairseq_patches import (
    checkpoint_loading,
    checkpoint_saving,
    distributed,
    early_stopping,
    log_files,
)
from mae_ast.trainer.run_report import RunReport
from mae_ast.trainer.schedule import check_schedule
from mae_ast.trainer.settings import drop_defaults_of_others, explain

_WORKER_CHECK_S = 0.05
_NOT_FINITE = re.compile(r"= *-?(nan|inf)")  # of a worker, in fairseq's table of gradient norms

Result = tuple[list[float | None], bool]  # of validation: losses, and whether training ends

logger = logging.getLogger(__name__)
_report = RunReport()


def apply() -> None:
    """Apply all repairs; more than once is harmless."""
    if getattr(apply, "done", False):
        return
    apply.done = True  # type: ignore[attr-defined]
    distributed.apply()

    # fairseq's iterators form reference cycles, so a data loader's workers are ended by the
    # garbage collector, where torch waits this long (5 s) for each of them: 40 tiny updates with
    # 2 workers took 73 s instead of 3. Can go when fairseq closes its iterators.
    torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL = _WORKER_CHECK_S

    # A thread that prepares batches is still at work when a program ends, which Python answers with
    # an abort (status 134) where the thread is within PyTorch: with dataset.num_workers=0, after a
    # training that had gone well. Can go when fairseq ends its iterators.
    atexit.register(_end_buffers)

    # A wrong type or an unknown option of a plug-in ends in a traceback, as do settings that this
    # machine's devices do not support. Can go when the trainer checks options and reports errors.
    for program in (fairseq_cli.train, fairseq_cli.hydra_train):  # the latter where all is known
        program.add_defaults = _in_one_line(program.add_defaults)

    # Neither ending early with a checkpoint nor the moment after an update has a hook in the
    # training loop, nor the one when all settings and data are known. Can go when they have.
    fairseq_cli.train.validate_and_save = _with_hooks(fairseq_cli.train.validate_and_save)

    # A run that is finished and started again makes another update, and saves that; and one whose
    # gradients are not finite ends in a traceback. Can go when the training loop looks at
    # max_update before it begins an epoch, and handles that error.
    fairseq_cli.train.train = _guarded(fairseq_cli.train.train)

    # Once gradients are not finite, the step is made again with a hook on every module, which fails
    # on a model that returns no tensor. Can go when its hooks take any output.
    NanDetector.add_hooks = _but_the_whole(NanDetector.add_hooks)

    # Under common.fp16 and common.bf16 copies of the parameters are optimized, which lose what the
    # parameters are marked with; and fp16 makes one vector of all, unless it is told not to. Can go
    # when copies are marked alike, and an optimizer of groups is not given a vector.
    copies, build = FP16Optimizer.build_fp32_params, FP16Optimizer.build_optimizer
    FP16Optimizer.build_fp32_params = classmethod(_with_marks(copies.__func__))
    FP16Optimizer.build_optimizer = classmethod(_one_by_one(build.__func__))

    log_files.apply()
    checkpoint_saving.apply()
    checkpoint_loading.apply()


def _with_marks(copies_of: Callable[..., Any]) -> Callable[..., Any]:
    def wrapper(cls: Any, cfg: Any, params: Any, flatten: bool = True) -> Any:
        copies = copies_of(cls, cfg, params, flatten)
        if not flatten:
            for parameter, copy in zip(params, copies, strict=True):
                for mark in MARKS:
                    if hasattr(parameter, mark):
                        setattr(copy, mark, getattr(parameter, mark))
        return copies

    return wrapper


def _one_by_one(build: Callable[..., Any]) -> Callable[..., Any]:
    def wrapper(cls: Any, cfg: Any, params: Any, **kwargs: Any) -> Any:
        if cfg.optimizer._name == MARKED_OPTIMIZER:
            cfg.common.fp16_no_flatten_grads = True
        return build(cls, cfg, params, **kwargs)

    return wrapper


def _end_buffers(limit_s: float = 5.0) -> None:
    deadline = time.monotonic() + limit_s
    for thread in threading.enumerate():
        if isinstance(thread, BackgroundConsumer):
            thread._max_len = 0  # after the batch that it is at
            while thread.is_alive() and time.monotonic() < deadline:
                with suppress(queue.Empty):  # it may wait for room
                    thread._queue.get(timeout=0.01)


def _in_one_line(add_defaults: Callable[[Any], None]) -> Callable[[Any], None]:
    def wrapper(cfg: Any) -> None:
        try:
            drop_defaults_of_others(cfg)
            add_defaults(cfg)
        except OmegaConfBaseException as error:
            raise SystemExit(f"mae-ast: error: {explain(error, cfg)}") from error
        choose_metric(cfg)
        with user_errors():
            check_schedule(cfg)
        distributed.configure_devices(cfg)

    return wrapper


def _with_hooks(validate_and_save: Callable[..., Any]) -> Callable[..., Any]:
    def wrapper(cfg: Any, trainer: Any, task: Any, epoch_itr: Any, *args: Any) -> Result:
        losses: list[float | None] = [None]
        ends: bool = getattr(task, "should_stop", False)
        is_over = False
        if ends:  # first of all: there may be no time for more
            checkpoint_utils.save_checkpoint(cfg.checkpoint, trainer, epoch_itr, None)
        if not (ends and task.failed):  # what is due now, no later start would make up for
            _report.after_update(cfg, trainer, epoch_itr)
            if hasattr(task, "after_update"):
                task.after_update(trainer.get_model(), trainer.get_num_updates())
            losses, is_over = validate_and_save(cfg, trainer, task, epoch_itr, *args)
        if ends:
            task.before_exit()
        return losses, ends or is_over

    return wrapper


def _guarded(train: Callable[..., Any]) -> Callable[..., Any]:
    def wrapper(cfg: Any, trainer: Any, task: Any, epoch_itr: Any) -> Result:
        if _is_finished(cfg, trainer):
            logger.info("already trained: %d updates", trainer.get_num_updates())
            return [None], True
        if hasattr(task, "before_training"):
            task.before_training(cfg, epoch_itr)
        _report.begin(cfg, trainer, task, epoch_itr)
        try:
            with distributed.peer_errors():
                result: Result = train(cfg, trainer, task, epoch_itr)
        except FloatingPointError as error:
            text = str(error)
            if "inconsistent" in text and not _NOT_FINITE.search(text):
                raise  # workers that compute something else: that is another matter
            raise SystemExit(
                f"mae-ast: error: training has diverged at update {trainer.get_num_updates() + 1}: "
                "gradients are not finite; what was saved before is in "
                f"{os.path.abspath(cfg.checkpoint.save_dir)} (crash.pt is of the end); a lower "
                "optimization.lr or optimization.clip_norm, or a longer "
                "lr_scheduler.warmup_updates may help"
            ) from error
        was_last_epoch = epoch_itr.next_epoch_idx > (cfg.optimization.max_epoch or math.inf)
        if (result[1] or was_last_epoch) and not getattr(task, "should_stop", False):
            _report.end(cfg, trainer)
        return result

    return wrapper


def _but_the_whole(add_hooks: Callable[..., None]) -> Callable[..., None]:
    def wrapper(self: Any, module: Any) -> None:
        if module._NanDetector__module_name:
            add_hooks(self, module)

    return wrapper


def _is_finished(cfg: Any, trainer: Any) -> bool:
    return early_stopping.has_stopped(cfg.checkpoint.patience) or bool(
        0 < (cfg.optimization.max_update or 0) <= trainer.get_num_updates()
    )
