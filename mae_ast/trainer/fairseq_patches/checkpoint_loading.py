"""Choose the checkpoint to resume from, or the weights to start from.

Rank 0 decides; the other ranks follow, even if they see a different folder.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

import torch
from fairseq import checkpoint_utils
from fairseq.file_io import PathManager

from mae_ast.core.checkpoints.reader import CheckpointError, file_of, read_checkpoint, read_state
from mae_ast.core.checkpoints.run_files import (
    LAST,
    SavedState,
    list_checkpoints,
    newest_whole,
    read_saved,
    updates_by_name,
)
from mae_ast.core.io.first_line import first_line
from mae_ast.hub.registry import RELEASED
from mae_ast.trainer import global_batch, ranks
from mae_ast.trainer.fairseq_patches.background_saving import writer
from mae_ast.trainer.fairseq_patches.checkpoint_saving import recorded_updates, remove_leftovers
from mae_ast.trainer.fairseq_patches.replaced import replaced
from mae_ast.trainer.statistics_guard import assert_same_statistics

_STATISTICS = {"input_mean": "running_mean", "input_std": "running_var"}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """Starting point of a run.

    Args:
        path: path of a checkpoint.
        source: name given by the user if only the weights are used; ``None`` to resume training.
    """

    path: str
    source: str | None = None


def apply() -> None:
    """Replace fairseq's functions."""
    # fairseq starts from scratch if the last checkpoint is missing, fails on every restart if it is
    # damaged, and resumes from exported files. It cannot start from weights without the trainer's
    # state (checkpoint.finetune_from_model with released or exported files). Remove when fairseq
    # falls back to other checkpoints and accepts files that hold only weights.
    checkpoint_utils.load_checkpoint = _with_start(checkpoint_utils.load_checkpoint)


def find_start(cfg: Any) -> Start | None:
    """Find the starting point of a run.

    Args:
        cfg: fairseq's settings ``checkpoint.*``.

    Returns:
        The starting point, or ``None`` to train from scratch.

    Raises:
        ValueError, FileNotFoundError: the requested file is missing, damaged, or cannot be resumed
            from; or all checkpoints of the run are damaged.
    """
    folder = Path(cfg.save_dir).absolute()
    remove_leftovers(folder)
    if cfg.restore_file != LAST:
        if cfg.finetune_from_model:
            raise ValueError(
                "checkpoint.restore_file and checkpoint.finetune_from_model exclude one another"
            )
        path = Path(cfg.restore_file).absolute()
        if not path.is_file():
            raise FileNotFoundError(f"checkpoint.restore_file={path}: no such file")
        return Start(str(_resumable(read_saved(path), cfg).path))
    if list_checkpoints(folder):
        return Start(str(_last_or_newest(folder, cfg)))
    if cfg.finetune_from_model:
        return Start(str(_resolve_source(cfg.finetune_from_model)), cfg.finetune_from_model)
    return None


def _last_or_newest(folder: Path, cfg: Any) -> Path:
    last = folder / LAST
    if last.is_file():
        try:
            saved = read_saved(last)
        except CheckpointError as error:
            problem = str(error)
        else:  # even if others are newer: the user may have restored it to go back
            return _resumable(saved, cfg).path
    else:
        problem = f"{last}: no such file"
    newest = newest_whole(folder, with_optimizer=not cfg.reset_optimizer)
    if newest is None:
        raise CheckpointError(
            f"{problem}; none of this run's checkpoints can be resumed from; move {folder} "
            "elsewhere or give another --out to start from scratch"
        )
    named = [updates_by_name(path) for path in list_checkpoints(folder)]
    known = max(recorded_updates(folder), *named)
    logger.warning(
        "%s; resuming from %s at update %d, updates lost: %s",
        *(problem, newest.path.name, newest.num_updates),
        max(known - newest.num_updates, 0) if known else "unknown",
    )
    return newest.path


def _resumable(saved: SavedState, cfg: Any) -> SavedState:
    if saved.has_optimizer or cfg.reset_optimizer:
        return saved
    raise CheckpointError(
        f"{saved.path}: has no optimizer state (an exported or converted file?), so training "
        "cannot resume from it; move it elsewhere, and start from its weights with "
        "checkpoint.finetune_from_model"
    )


def _resolve_source(source: str) -> Path:
    if source not in RELEASED:
        near = get_close_matches(source, RELEASED)
        if near and not os.path.exists(source):
            raise FileNotFoundError(f"{source}: no such checkpoint; did you mean {near[0]}?")
        return file_of(source)
    from mae_ast.hub.load import released_file  # imports huggingface_hub

    return released_file(source)


def _find_start_on_rank_0(cfg: Any, trainer: Any, key: str) -> Start | None:
    """Call :func:`find_start` on rank 0 and return the result on all ranks."""

    def found() -> bytes:
        start = find_start(cfg)
        if start is not None and start.source is None:
            assert_same_statistics(start.path, trainer.cfg.model)
        return json.dumps(None if start is None else dataclasses.asdict(start)).encode()

    fields = json.loads(ranks.from_first(key, found))
    return None if fields is None else Start(**fields)


def _with_start(load: Callable[..., Any]) -> Callable[..., Any]:
    numbers = itertools.count()

    def wrapper(cfg: Any, trainer: Any, *args: Any, **kwargs: Any) -> Any:
        if trainer.checkpoint_suffix or cfg.continue_once:  # sharded: left to fairseq
            return load(cfg, trainer, *args, **kwargs)
        writer.wait()  # of a training in this process that has ended with an error
        last = os.path.join(cfg.save_dir, LAST)
        with ExitStack() as during:
            start = _find_start_on_rank_0(cfg, trainer, f"mae_ast/start/{next(numbers)}")
            if start is None:
                during.enter_context(_override_file_checks({last: False}))
            elif start.source is None:
                # For a while only: checkpoints must store the user's settings.
                settings = {"restore_file": start.path, "finetune_from_model": None}
                during.enter_context(_override_file_checks({start.path: True}))
                during.enter_context(replaced(cfg, **settings))
                during.enter_context(_reading_with(_resume_with(trainer.cfg)))
            else:
                model = trainer.get_model()
                model.weights_are_from = start.source
                during.enter_context(_override_file_checks({last: False, start.path: True}))
                during.enter_context(replaced(cfg, finetune_from_model=start.path))
                during.enter_context(_reading_with(_weights_for(model)))
                during.enter_context(_keep_input_statistics(model, trainer.cfg.model, start.source))
            try:
                return load(cfg, trainer, *args, **kwargs)
            except Exception as error:  # the trainer's, which does not say what does not match
                if isinstance(error.__context__, CheckpointError):
                    raise error.__context__ from None
                raise

    return wrapper


def _override_file_checks(there: Mapping[str, bool]) -> AbstractContextManager[None]:
    """Make fairseq see the same files on every rank; rank 0 reads them."""

    def seen(check: Callable[[str], bool]) -> Callable[[str], bool]:
        return lambda path: there[path] if path in there else check(path)

    checks = {name: seen(getattr(PathManager, name)) for name in ("exists", "isfile")}
    return replaced(PathManager, **checks)


def _reading_with(reader: Callable[..., Any]) -> AbstractContextManager[None]:
    read = checkpoint_utils.load_checkpoint_to_cpu
    return replaced(checkpoint_utils, load_checkpoint_to_cpu=partial(reader, read))


def _resume_with(cfg: Any) -> Callable[..., Any]:
    """Return a function that reads a checkpoint for a run with these settings."""

    def resume(read: Callable[..., Any], path: str, *args: Any, **kwargs: Any) -> Any:
        if "optimizer_history" not in read_state(path):  # checkpoint.reset_optimizer is set
            return _only_weights(read_checkpoint(path).weights)
        try:
            state = read(path, *args, **kwargs)
        except Exception as error:  # torch raises many classes
            reason = first_line(error)
            raise CheckpointError(
                f"{path}: cannot be read ({reason}); move it elsewhere, and the same command "
                "resumes from the newest of the other checkpoints"
            ) from error
        if warning := global_batch.resume(state, cfg):
            logger.warning("%s: %s", path, warning)
        return state

    return resume


def _weights_for(model: Any) -> Callable[..., Any]:
    """Return a function that reads weights in any layout, converted to the model's names."""

    def read_weights(read: Callable[..., Any], path: str, *args: Any, **kwargs: Any) -> Any:
        state = {} if path.endswith(".safetensors") else read_state(path)
        weights = state.get("model")
        if not isinstance(weights, Mapping) or weights.keys() != model.state_dict().keys():
            weights = read_checkpoint(path).weights
        return _only_weights(weights)

    return read_weights


def _only_weights(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Wrap weights as a trainer's checkpoint at update 0."""
    return {
        "model": dict(weights),
        "optimizer_history": [{"num_updates": 0}],
        "extra_state": {"train_iterator": {"epoch": 1, "iterations_in_epoch": 0}},
    }


@contextmanager
def _keep_input_statistics(model: Any, settings: Any, source: str) -> Iterator[None]:
    """Keep the input statistics of this run's settings while weights are loaded.

    In pretraining the settings apply if the statistics are fixed; in fine-tuning, each setting that
    is not null.
    """
    if hasattr(model, "batch_norm"):
        norm = model.batch_norm
        keys = () if norm.update else tuple(_STATISTICS)
    else:
        norm = model.encoder.batch_norm
        keys = tuple(key for key in _STATISTICS if settings[key] is not None)
    own = {_STATISTICS[key]: getattr(norm, _STATISTICS[key]).clone() for key in keys}
    yield
    theirs = {name: getattr(norm, name).clone() for name in _STATISTICS.values()}
    norm.load_state_dict(own, strict=False)
    if any(not torch.equal(value, theirs[name]) for name, value in own.items()):
        logger.info(
            "using the input statistics of this run (mean %g, std %g), not those of %s (%g, %g)",
            *(norm.running_mean.item(), norm.running_var.sqrt().item(), source),
            *(theirs["running_mean"].item(), theirs["running_var"].sqrt().item()),
        )
