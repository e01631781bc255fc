"""What fairseq 0.12.3 needs to behave on today's machines; each repair says when it can go."""

from __future__ import annotations

import atexit
import logging
import os
import queue
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import fairseq_cli.hydra_train
import fairseq_cli.train
import torch
import torch.utils.data._utils
from fairseq import checkpoint_utils
from fairseq.data.iterators import BackgroundConsumer
from fairseq.file_io import PathManager
from fairseq.nan_detector import NanDetector
from fairseq.optim.fp16_optimizer import FP16Optimizer
from omegaconf.errors import OmegaConfBaseException

from mae_ast.core.checkpoint import RUN_FILE, file_of, read_checkpoint, read_state
from mae_ast.errors import user_errors
from mae_ast.fetch.registry import RELEASED
from mae_ast.optim.adamw import MARKED_OPTIMIZER, MARKS

_WORKER_CHECK_S = 0.05
_STATISTICS = ("running_mean", "running_var")
_NOT_FINITE = re.compile(r"= *-?(nan|inf)")  # of a worker, in fairseq's table of gradient norms

Result = tuple[list[float | None], bool]  # of validation: losses, and whether training ends

logger = logging.getLogger(__name__)


def apply() -> None:
    """Apply all repairs; more than once is harmless."""
    if getattr(apply, "done", False):
        return
    apply.done = True  # type: ignore[attr-defined]

    # fairseq's iterators form reference cycles, so a data loader's workers are ended by the
    # garbage collector, where torch waits this long (5 s) for each of them: 40 tiny updates with
    # 2 workers took 73 s instead of 3. Can go when fairseq closes its iterators.
    torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL = _WORKER_CHECK_S

    # A thread that prepares batches is still at work when a program ends, which Python answers with
    # an abort (status 134) where the thread is within PyTorch: with dataset.num_workers=0, after a
    # training that had gone well. Can go when fairseq ends its iterators.
    atexit.register(_end_buffers)

    # checkpoint_last.pt is a plain copy of the file just saved; a run killed meanwhile leaves it
    # truncated and can never be resumed. Can go when fairseq renames a finished copy into place.
    PathManager.copy = staticmethod(_copy_atomically)

    # A wrong type or an unknown option of a plug-in ends in a traceback. Can go when the trainer
    # reads options where it handles errors.
    for program in (fairseq_cli.train, fairseq_cli.hydra_train):  # the latter where all is known
        program.add_defaults = _in_one_line(program.add_defaults)

    # Neither ending early with a checkpoint nor the moment after an update has a hook in the
    # training loop. Can go when they have.
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

    # A run can start from weights alone (checkpoint.finetune_from_model): the released files and
    # exports have no state of a trainer, which fairseq takes for granted. Can go when it does not.
    checkpoint_utils.load_checkpoint_to_cpu = _of_weights_alone(
        checkpoint_utils.load_checkpoint_to_cpu
    )
    checkpoint_utils.load_checkpoint = _from_elsewhere(checkpoint_utils.load_checkpoint)


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


def _from_elsewhere(load: Callable[..., Any]) -> Callable[..., Any]:
    """A run that starts from a released model or a folder, with input statistics of its own.

    A folder exists, but is no file: the run would go on from random weights.
    """

    def wrapper(cfg: Any, trainer: Any, *args: Any, **kwargs: Any) -> Any:
        with user_errors():
            source, last = cfg.finetune_from_model, os.path.join(cfg.save_dir, RUN_FILE.name)
            if not source or PathManager.exists(last):
                return load(cfg, trainer, *args, **kwargs)
            cfg.finetune_from_model = str(_file_of(source))
            model = trainer.get_model()
            model.weights_are_from = source
            with _own_statistics(model, source):
                return load(cfg, trainer, *args, **kwargs)

    return wrapper


def _file_of(source: str) -> Path:
    if source not in RELEASED:
        return file_of(source)
    from mae_ast.pretrained import released_file  # the hub's library, which training needs not

    return released_file(source)


@contextmanager
def _own_statistics(model: Any, source: str) -> Iterator[None]:
    """Loading weights leaves fixed input statistics as pretraining's settings have them."""
    norm = getattr(model, "batch_norm", None)  # of a classifier, statistics come with the weights
    if norm is None or norm.update:
        yield
        return
    own = {name: value.clone() for name, value in norm.named_buffers()}
    yield
    theirs = dict(norm.named_buffers())
    if any(not torch.equal(own[name], theirs[name]) for name in _STATISTICS):
        logger.info(
            "input statistics are this run's (mean %g, deviation %g), not those of %s (%g, %g)",
            *(own["running_mean"].item(), own["running_var"].sqrt().item(), source),
            *(theirs["running_mean"].item(), theirs["running_var"].sqrt().item()),
        )
    norm.load_state_dict(own)


def _of_weights_alone(load: Callable[..., Any]) -> Callable[..., Any]:
    def wrapper(path: str, *args: Any, **kwargs: Any) -> Any:
        if not path.endswith(".safetensors") and "optimizer_history" in read_state(path):
            return load(path, *args, **kwargs)
        return {
            "model": read_checkpoint(path).weights,
            "optimizer_history": [{"num_updates": 0}],
            "extra_state": {"train_iterator": {"epoch": 1, "iterations_in_epoch": 0}},
        }

    return wrapper


def _copy_atomically(src_path: str, dst_path: str, overwrite: bool = False) -> str:
    if os.path.exists(dst_path) and not overwrite:
        raise FileExistsError(dst_path)
    part = f"{dst_path}.tmp"
    shutil.copyfile(src_path, part)
    os.replace(part, dst_path)
    return dst_path


def _in_one_line(add_defaults: Callable[[Any], None]) -> Callable[[Any], None]:
    def wrapper(cfg: Any) -> None:
        try:
            add_defaults(cfg)
        except OmegaConfBaseException as error:
            text = " ".join(str(error).split())
            raise SystemExit(f"mae-ast: error: {error.full_key or 'settings'}: {text}") from error

    return wrapper


def _with_hooks(validate_and_save: Callable[..., Any]) -> Callable[..., Any]:
    def wrapper(cfg: Any, trainer: Any, task: Any, epoch_itr: Any, *args: Any) -> Result:
        losses: list[float | None] = [None]
        ends: bool = getattr(task, "should_stop", False)
        is_over = False
        if ends:  # first of all: there may be no time for more
            checkpoint_utils.save_checkpoint(cfg.checkpoint, trainer, epoch_itr, None)
        if not (ends and task.failed):  # what is due now, no later start would make up for
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
        try:
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
        return result

    return wrapper


def _but_the_whole(add_hooks: Callable[..., None]) -> Callable[..., None]:
    def wrapper(self: Any, module: Any) -> None:
        if module._NanDetector__module_name:
            add_hooks(self, module)

    return wrapper


def _is_finished(cfg: Any, trainer: Any) -> bool:
    return bool(0 < (cfg.optimization.max_update or 0) <= trainer.get_num_updates())
