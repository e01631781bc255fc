"""Choose the metric of the best checkpoint, ``checkpoint.best_checkpoint_metric``.

``auto`` selects the task's main metric: mAP for multi-label classification, accuracy for
single-label classification, the loss for pretraining.
"""

from __future__ import annotations

from typing import Any

AUTO = "auto"
# Validation metrics; True if higher is better.
_IS_HIGHER_BETTER = {
    **dict.fromkeys(("accuracy", "info_nce_accuracy", "mAP", "mAUC", "d_prime"), True),
    **dict.fromkeys(("loss", "mse", "info_nce"), False),
}


def choose_metric(cfg: Any) -> None:
    """Replace ``auto`` in the settings by the task's metric, and set its direction.

    Args:
        cfg: all settings of a run; changed in place.
    """
    checkpoint, task = cfg.checkpoint, cfg.task
    if checkpoint.best_checkpoint_metric != AUTO:
        return
    metric = "loss"
    if "multi_label" in task:
        metric = "mAP" if task.multi_label else "accuracy"
    checkpoint.best_checkpoint_metric = metric
    checkpoint.maximize_best_checkpoint_metric = _IS_HIGHER_BETTER[metric]
    if "best_checkpoint_metric" in task:  # a copy, if the settings are already resolved
        task.best_checkpoint_metric = metric


def direction_warning(checkpoint: Any) -> str | None:
    """Return a warning if the settings keep the worst checkpoint as the best, else ``None``.

    Args:
        checkpoint: settings ``checkpoint.*``.
    """
    metric, maximizes = (
        checkpoint.best_checkpoint_metric,
        checkpoint.maximize_best_checkpoint_metric,
    )
    is_better = _IS_HIGHER_BETTER.get(metric, maximizes)
    if is_better == maximizes or checkpoint.no_save:
        return None
    return (
        f"checkpoint.maximize_best_checkpoint_metric={str(maximizes).lower()} keeps the checkpoint "
        f"with the {'highest' if maximizes else 'lowest'} {metric} as the best; set it to "
        f"{str(is_better).lower()}"
    )
