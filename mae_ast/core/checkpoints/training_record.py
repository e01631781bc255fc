"""Read what a checkpoint records about its training: data, updates, validation metric."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

_FOLD = re.compile(r"fold\d+")  # says nothing without the name of the folder that it is in


def training_record(state: Mapping[str, Any], stage: str) -> dict[str, Any]:
    """Return what is recorded about a training, as plain values; what is not recorded is missing.

    Args:
        state: content of a checkpoint file.
        stage: "pretraining" or "fine-tuning".

    Returns:
        ``stage``; ``data``, the name of its folder, without the path; ``updates``;
        ``learning_rate``; ``clip_samples``, to which clips were cropped; ``seed``; and
        ``validation`` with ``split``, ``metric`` and ``value``, the last one before the file was
        saved.
    """
    history, rates = state.get("optimizer_history"), _entry(state, "cfg", "optimization", "lr")
    found = {
        "data": data_name(_entry(state, "cfg", "task", "data")) or None,
        "updates": _number(_entry(_item(history, -1), "num_updates")),
        "learning_rate": _number(_item(rates, 0)),
        "clip_samples": _number(_entry(state, "cfg", "task", "max_sample_size")),
        "seed": _number(_entry(state, "cfg", "task", "seed")),
        "validation": _validation(state),
    }
    known = {key: value for key, value in found.items() if value is not None}
    return {"stage": stage, **known} if known else {}


def _validation(state: Mapping[str, Any]) -> dict[str, Any] | None:
    metric = _entry(state, "cfg", "checkpoint", "best_checkpoint_metric")
    value = _number(_entry(state, "extra_state", "val_loss"))  # of that metric
    split = _entry(state, "cfg", "dataset", "valid_subset")
    if value is None or not isinstance(metric, str):
        return None
    return {"split": str(split or "valid"), "metric": metric, "value": value}


def data_name(path: Any) -> str:
    """Return the name of a data folder, or of several, without paths; empty if there is none."""
    if isinstance(path, (list, tuple)):
        return ", ".join(filter(None, map(data_name, path)))
    folder = PurePath(path) if isinstance(path, (str, PurePath)) else PurePath()
    if _FOLD.fullmatch(folder.name) and folder.parent.name:
        return f"{folder.parent.name}/{folder.name}"
    return folder.name


def _entry(values: Any, *keys: str) -> Any:
    """Return an entry of nested mappings; ``None`` if there is none."""
    for key in keys:
        values = values.get(key) if isinstance(values, Mapping) else None
    return values


def _number(value: Any) -> int | float | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if is_number and math.isfinite(value) else None


def _item(values: Any, index: int) -> Any:
    """Return an item of a list; ``None`` if it is not a list or empty."""
    return values[index] if isinstance(values, (list, tuple)) and values else None
