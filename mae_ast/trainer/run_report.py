"""Log a summary of a training run at its start, a first progress line, and how it ended."""

from __future__ import annotations

import logging
import math
import os
import time
from pathlib import Path
from typing import Any

import fairseq_cli.train
import numpy as np
import torch
from fairseq.logging import metrics, progress_bar

from mae_ast.bench.machine import peak_memory
from mae_ast.core.io.audio import SAMPLE_RATE
from mae_ast.core.io.plural import plural
from mae_ast.core.models.classifier import Classifier
from mae_ast.core.models.registry import system_name
from mae_ast.core.nn.precision import has_bfloat16_units
from mae_ast.data.mixed_dataset import MixedDataset
from mae_ast.trainer import metrics_log, run_record
from mae_ast.trainer.fairseq_patches import early_stopping, weights_and_biases
from mae_ast.trainer.schedule import planned_updates

FIRST_LINE_UPDATES = 10  # independent of common.log_interval
FIRST_LINE_S = 30.0  # or earlier, if updates take long

logger = logging.getLogger(__name__)


class RunReport:
    """Log the messages of one training in this process."""

    def __init__(self) -> None:
        self._trainer: Any = None
        self._begin_s: float | None = None
        self._first_update = 0
        self._begin_gib = 0.0
        self._has_progress = False

    def begin(self, cfg: Any, trainer: Any, task: Any, epoch_itr: Any) -> None:
        """Log the summary of a run; later calls with the same trainer do nothing."""
        if self._trainer is not trainer:
            self._trainer = trainer
            self._begin_s = time.monotonic()
            self._first_update = trainer.get_num_updates()
            self._has_progress = False
            if trainer.is_data_parallel_master:
                logger.info("%s", describe(cfg, trainer, task, epoch_itr))
                _begin_files(cfg, trainer)
                self._begin_gib = _peak_gib(trainer.device)

    def after_update(self, cfg: Any, trainer: Any, epoch_itr: Any) -> None:
        """Log a first progress line unless ``common.log_interval`` has already produced one."""
        if self._has_progress or self._begin_s is None:
            return
        num_updates = trainer.get_num_updates()
        made = num_updates - self._first_update
        if made < 1:  # gradients overflowed
            return
        if num_updates % cfg.common.log_interval == 0:
            self._has_progress = True
        elif made >= FIRST_LINE_UPDATES or time.monotonic() - self._begin_s > FIRST_LINE_S:
            self._has_progress = True
            if trainer.is_data_parallel_master:
                log_progress(cfg, num_updates, epoch_itr)

    def end(self, cfg: Any, trainer: Any) -> None:
        """Log why and when the run ended, and reset the state for the next job of a sweep."""
        num_updates, begin_s = trainer.get_num_updates(), self._begin_s
        self._begin_s, self._has_progress = None, False
        if not trainer.is_data_parallel_master or begin_s is None:
            return
        reason = ""
        if early_stopping.has_stopped(cfg.checkpoint.patience):
            reason = f", after {cfg.checkpoint.patience} validations without improvement"
        seconds = time.monotonic() - begin_s
        elapsed = duration(seconds)
        logger.info("done: update %d%s; took %s; %s", num_updates, reason, elapsed, _saving(cfg))
        peak_gib = _peak_gib(trainer.device)
        metrics_log.record(
            metrics_log.END,
            num_updates,
            {"seconds": seconds, "peak_gib": peak_gib, "peak_gib_at_begin": self._begin_gib},
        )


def describe(cfg: Any, trainer: Any, task: Any, epoch_itr: Any) -> str:
    """Return one line with a run's model, data, updates, device, folder and first update."""
    model = trainer.get_model()
    dataset = task.datasets[cfg.dataset.train_subset]
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    clips = np.concatenate([np.asarray(batch) for batch in epoch_itr.frozen_batches])
    hours = float(dataset.num_tokens_vec(clips).sum()) / SAMPLE_RATE / 3600
    too_long = ""
    if len(clips) < len(dataset):
        too_long = f" of {len(dataset)}, the others longer than dataset.max_tokens"
    updates_per_epoch = math.ceil(len(epoch_itr) / cfg.optimization.update_freq[0])
    what = f"pretraining {cfg.model._name}"
    if isinstance(model, Classifier):
        system = system_name(model.encoder.config)
        what = f"fine-tuning {system} for {plural(len(task.labels), 'class', 'classes')}"
    parts = [
        f"{what}, {millions:.3g} M parameters",
        f"{plural(len(clips), 'clip')}{too_long} ({hours:.3g} h), "
        f"{len(clips) / updates_per_epoch:.3g} per update",
        *([dataset.epoch_text()] if isinstance(dataset, MixedDataset) else []),
        _updates(cfg.optimization, len(epoch_itr), updates_per_epoch),
        f"{_device(trainer)} in {_precision(cfg, trainer)}, "
        f"{plural(trainer.data_parallel_world_size, 'process', 'processes')}",
        _saving(cfg),
    ]
    if trainer.get_num_updates():
        parts.append(f"resuming from update {trainer.get_num_updates()}")
    return "; ".join(parts)


def _peak_gib(device: torch.device) -> float:
    """Return the peak memory so far: of tensors on a GPU, else of this process, in GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return peak_memory()


def _begin_files(cfg: Any, trainer: Any) -> None:
    """Record the start, and open the metrics file; hydra runs a job in the run's folder."""
    folder, num_updates = Path.cwd(), trainer.get_num_updates()
    more = {}
    if cfg.common.wandb_project:
        run_id = os.environ.get(weights_and_biases.RUN_ID)
        more["wandb_run_id"] = run_id or run_record.wandb_run_id(folder, num_updates)
        weights_and_biases.begin(more["wandb_run_id"])
    processes = trainer.data_parallel_world_size
    run_record.append(folder, num_updates, trainer.device.type, processes, **more)
    metrics_log.begin(folder, num_updates)


def log_progress(cfg: Any, num_updates: int, epoch_itr: Any) -> None:
    """Log the values since the last progress line in fairseq's format, without resetting them."""
    log_format = cfg.common.log_format or "tqdm"
    if log_format not in ("json", "simple"):  # other formats log every update or none
        return
    batches = range(len(epoch_itr))
    bar = progress_bar.progress_bar(batches, log_format, 1, epoch=epoch_itr.epoch)
    bar.i, bar.size = epoch_itr.iterations_in_epoch - 1, len(epoch_itr)
    stats = fairseq_cli.train.get_training_stats(metrics.get_smoothed_values("train_inner"))
    bar.log(stats, tag="train_inner", step=num_updates)


def duration(seconds: float) -> str:
    """Format a duration: ``8.2 s``, ``3 min 5 s``, ``7 h 2 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _updates(optimization: Any, batches: int, updates_per_epoch: int) -> str:
    limit = planned_updates(optimization, batches)
    if limit is None:
        return "updates without limit"
    return f"{plural(limit, 'update')} ({plural(math.ceil(limit / updates_per_epoch), 'epoch')})"


def _saving(cfg: Any) -> str:
    if cfg.checkpoint.no_save:
        return "no checkpoints"
    return f"checkpoints in {os.path.abspath(cfg.checkpoint.save_dir)}"


def _device(trainer: Any) -> str:
    if trainer.device.type == "cuda":
        return torch.cuda.get_device_name(trainer.device)
    return str(trainer.device.type).upper()


def _precision(cfg: Any, trainer: Any) -> str:
    if cfg.common.fp16:
        return "float16"
    if cfg.common.bf16:
        return "bfloat16"
    precision: str = cfg.model.precision
    if precision != "auto":
        return precision
    return "bfloat16" if has_bfloat16_units(trainer.device.type) else "float32"
