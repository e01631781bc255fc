"""Patches of fairseq 0.12.3's training loop, and a function that applies all patches."""

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
from fairseq.data import data_utils
from fairseq.data.iterators import BackgroundConsumer
from fairseq.nan_detector import NanDetector
from fairseq.optim.fp16_optimizer import FP16Optimizer
from omegaconf.errors import OmegaConfBaseException

from mae_ast.optim.adamw import MARKED_OPTIMIZER, MARKS
from mae_ast.trainer.best_metric import choose_metric
from mae_ast.trainer.fairseq_patches import (
    checkpoint_loading,
    checkpoint_saving,
    distributed,
    early_stopping,
    error_lines,
    log_files,
    logged_values,
    weights_and_biases,
)
from mae_ast.trainer.global_batch import set_update_freq
from mae_ast.trainer.run_report import RunReport
from mae_ast.trainer.schedule import check_schedule
from mae_ast.trainer.settings import drop_defaults_of_others, explain

_WORKER_CHECK_S = 0.05
_NOT_FINITE = re.compile(r"= *-?(nan|inf)")  # a rank's norm in fairseq's table of gradient norms

Result = tuple[list[float | None], bool]  # validation losses, and True if training ends

logger = logging.getLogger(__name__)
_report = RunReport()


def apply() -> None:
    """Apply all patches; may be called more than once."""
    if getattr(apply, "done", False):
        return
    apply.done = True  # type: ignore[attr-defined]
    distributed.apply()

    # fairseq's iterators form reference cycles, so the garbage collector ends a data loader's
    # workers, and torch waits this long (default 5 s) for each of them: 40 tiny updates with 2
    # workers took 73 s instead of 3. Remove when fairseq closes its iterators.
    torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL = _WORKER_CHECK_S

    # A thread that prepares batches still runs when the program ends. Python aborts (status 134) if
    # the thread is inside PyTorch then: with dataset.num_workers=0, after a successful training.
    # Remove when fairseq closes its iterators.
    atexit.register(_stop_prefetch_threads)

    # Options of a plug-in are not checked, nor whether this machine's devices support the settings.
    # Remove when the trainer checks options.
    for program in (fairseq_cli.train, fairseq_cli.hydra_train):  # the latter if already registered
        program.add_defaults = _with_checks(program.add_defaults)

    # The training loop has no hook to stop early with a checkpoint, none after an update, and none
    # once all settings and data are known. Remove when it has.
    fairseq_cli.train.validate_and_save = _with_hooks(fairseq_cli.train.validate_and_save)

    # A finished run that is started again makes another update and saves it; a run whose gradients
    # are not finite ends in a traceback. Remove when the training loop checks max_update before an
    # epoch and handles that error.
    fairseq_cli.train.train = _with_report(fairseq_cli.train.train)

    # If gradients are not finite, the step is repeated with a hook on every module, which fails on
    # a model that does not return a tensor. Remove when the hooks accept any output.
    NanDetector.add_hooks = _skip_root_module(NanDetector.add_hooks)

    # With common.fp16 and common.bf16, float32 copies of the parameters are optimized. They lack
    # the parameters' marks, and fp16 flattens all of them into one vector by default. Remove when
    # copies keep the marks and optimizers with parameter groups get no flattened vector.
    copies, build = FP16Optimizer.build_fp32_params, FP16Optimizer.build_optimizer
    FP16Optimizer.build_fp32_params = classmethod(_with_marks(copies.__func__))
    FP16Optimizer.build_optimizer = classmethod(_without_flattening(build.__func__))

    # Validation subsets that no setting names are looked for in task.data, which must be a text.
    # Remove when it may be a list.
    find = data_utils._find_extra_valid_paths
    data_utils._find_extra_valid_paths = _in_each_folder(find)

    log_files.apply()
    logged_values.apply()
    checkpoint_saving.apply()
    checkpoint_loading.apply()
    error_lines.apply()


def _in_each_folder(find: Callable[[str], set[str]]) -> Callable[[Any], set[str]]:
    def wrapper(data: Any) -> set[str]:
        from mae_ast.tasks.audio_task import data_folders  # a module that imports this one

        if isinstance(data, str):
            return find(data)
        return {name for folder in data_folders(data) for name in find(str(folder))}

    return wrapper


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


def _without_flattening(build: Callable[..., Any]) -> Callable[..., Any]:
    def wrapper(cls: Any, cfg: Any, params: Any, **kwargs: Any) -> Any:
        if cfg.optimizer._name == MARKED_OPTIMIZER:
            cfg.common.fp16_no_flatten_grads = True
        return build(cls, cfg, params, **kwargs)

    return wrapper


def _stop_prefetch_threads(limit_s: float = 5.0) -> None:
    deadline = time.monotonic() + limit_s
    for thread in threading.enumerate():
        if isinstance(thread, BackgroundConsumer):
            thread._max_len = 0  # ends after the current batch
            while thread.is_alive() and time.monotonic() < deadline:
                with suppress(queue.Empty):  # it may wait for free space
                    thread._queue.get(timeout=0.01)


def _with_checks(add_defaults: Callable[[Any], None]) -> Callable[[Any], None]:
    def wrapper(cfg: Any) -> None:
        try:
            drop_defaults_of_others(cfg)
            add_defaults(cfg)
        except OmegaConfBaseException as error:
            raise ValueError(explain(error, cfg)) from error
        choose_metric(cfg)
        weights_and_biases.check(cfg)
        check_schedule(cfg)
        distributed.configure_devices(cfg)
        set_update_freq(cfg, distributed.num_ranks(cfg.distributed_training))

    return wrapper


def _with_hooks(validate_and_save: Callable[..., Any]) -> Callable[..., Any]:
    def wrapper(cfg: Any, trainer: Any, task: Any, epoch_itr: Any, *args: Any) -> Result:
        losses: list[float | None] = [None]
        ends: bool = getattr(task, "should_stop", False)
        is_over = False
        if ends:  # first: there may be no time for anything else
            checkpoint_utils.save_checkpoint(cfg.checkpoint, trainer, epoch_itr, None)
            checkpoint_saving.finish(trainer.get_num_updates())
        if not (ends and task.failed):  # resuming would not repeat what is due after this update
            _report.after_update(cfg, trainer, epoch_itr)
            if hasattr(task, "after_update"):
                task.after_update(trainer.get_model(), trainer.get_num_updates())
            losses, is_over = validate_and_save(cfg, trainer, task, epoch_itr, *args)
        if ends:
            checkpoint_saving.finish(trainer.get_num_updates())
            task.before_exit()
            logger.info(
                "update %d: saved and exited on a signal; the same command resumes",
                trainer.get_num_updates(),
            )
        return losses, ends or is_over

    return wrapper


def _with_report(train: Callable[..., Any]) -> Callable[..., Any]:
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
                raise  # ranks that disagree are another error
            raise ValueError(
                f"training has diverged at update {trainer.get_num_updates() + 1}: "
                "gradients are not finite; earlier checkpoints are in "
                f"{os.path.abspath(cfg.checkpoint.save_dir)} (crash.pt holds the last state); try "
                "a lower optimization.lr or optimization.clip_norm, or a longer "
                "lr_scheduler.warmup_updates"
            ) from error
        was_last_epoch = epoch_itr.next_epoch_idx > (cfg.optimization.max_epoch or math.inf)
        # It is too late to wait when the learning rate is known to have fallen to stop_min_lr.
        if result[1] or was_last_epoch or cfg.optimization.stop_min_lr >= 0:
            checkpoint_saving.finish(trainer.get_num_updates())
        if result[1] or was_last_epoch:
            if not getattr(task, "should_stop", False):
                _report.end(cfg, trainer)
            logged_values.end()
        return result

    return wrapper


def _skip_root_module(add_hooks: Callable[..., None]) -> Callable[..., None]:
    def wrapper(self: Any, module: Any) -> None:
        if module._NanDetector__module_name:
            add_hooks(self, module)

    return wrapper


def _is_finished(cfg: Any, trainer: Any) -> bool:
    return early_stopping.has_stopped(cfg.checkpoint.patience) or bool(
        0 < (cfg.optimization.max_update or 0) <= trainer.get_num_updates()
    )
