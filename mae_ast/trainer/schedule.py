"""Check a learning rate schedule: refuse what fails in fairseq, warn if it does not fit the run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

_WARMUP_KEYS = ("warmup_updates", "warmup_steps")


def check_schedule(cfg: Any) -> None:
    """Refuse schedules for which fairseq fails with an assertion or a division by zero.

    Args:
        cfg: all settings of a training.

    Raises:
        ValueError: names the keys, their values and what would be valid.
    """
    schedule, max_update = cfg.lr_scheduler, cfg.optimization.max_update or 0
    name = schedule.get("_name")
    if name == "cosine" and (schedule.get("lr_period_updates") or 0) <= 0:
        if max_update <= 0:
            raise ValueError(
                "lr_scheduler=cosine needs an end: set optimization.max_update (now "
                f"{max_update}) or lr_scheduler.lr_period_updates"
            )
        if schedule.warmup_updates == max_update:
            raise ValueError(
                f"lr_scheduler.warmup_updates={schedule.warmup_updates} leaves no update for the "
                f"cosine schedule of optimization.max_update={max_update}; lower it"
            )
    if name == "polynomial_decay" and schedule.total_num_update <= 0:
        raise ValueError(
            "lr_scheduler=polynomial_decay needs an end: set optimization.max_update (now "
            f"{max_update}) or lr_scheduler.total_num_update"
        )


def planned_updates(optimization: Any, batches_per_epoch: int) -> int | None:
    """Return the number of updates after which training ends, or ``None`` without a limit.

    Args:
        optimization: settings ``optimization.*``.
        batches_per_epoch: batches per process and epoch.
    """
    limits = []
    if optimization.max_update and optimization.max_update > 0:
        limits.append(int(optimization.max_update))
    if optimization.max_epoch and optimization.max_epoch > 0:
        each: Sequence[int] = optimization.update_freq
        freqs = [each[min(epoch, len(each) - 1)] for epoch in range(int(optimization.max_epoch))]
        limits.append(sum(math.ceil(batches_per_epoch / freq) for freq in freqs))
    return min(limits, default=None)


def schedule_warning(cfg: Any, batches_per_epoch: int) -> str | None:
    """Return a warning if the schedule is longer or shorter than the run, else ``None``.

    Args:
        cfg: all settings of a training.
        batches_per_epoch: batches per process and epoch.
    """
    schedule = cfg.lr_scheduler
    updates = planned_updates(cfg.optimization, batches_per_epoch)
    if updates is None or schedule.get("phase_ratio") is not None:  # warm-up is a ratio of the run
        return None
    for key in _WARMUP_KEYS:
        warmup = schedule.get(key) or 0
        if warmup >= updates > 0:
            return (
                f"lr_scheduler.{key}={warmup}: training ends after {updates} updates, before the "
                f"learning rate has reached its maximum; lr_scheduler.{key}={updates // 10} would "
                "be a tenth of the run"
            )
    end = schedule.get("total_num_update") or math.inf
    if schedule.get("_name") == "polynomial_decay" and end < updates:
        return (
            f"lr_scheduler.total_num_update={end:.0f}: the learning rate is "
            f"{schedule.end_learning_rate:g} from then on, and training ends after {updates} "
            "updates only; optimization.max_update is its default"
        )
    return None
