"""What a training starts from: weights of another model, or its own last checkpoint."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from fairseq import checkpoint_utils
from fairseq.file_io import PathManager

from mae_ast.core.checkpoint import RUN_FILE, file_of, read_checkpoint, read_state
from mae_ast.errors import user_errors
from mae_ast.fetch.registry import RELEASED

_STATISTICS = ("running_mean", "running_var")

logger = logging.getLogger(__name__)


def apply() -> None:
    """Replace fairseq's functions."""
    # A run can start from weights alone (checkpoint.finetune_from_model): the released files and
    # exports have no state of a trainer, which fairseq takes for granted. Can go when it does not.
    checkpoint_utils.load_checkpoint_to_cpu = _of_weights_alone(
        checkpoint_utils.load_checkpoint_to_cpu
    )
    checkpoint_utils.load_checkpoint = _from_elsewhere(checkpoint_utils.load_checkpoint)


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
