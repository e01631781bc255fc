"""Refuse to resume a run with different input statistics."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from mae_ast.core.checkpoints.state_files import read_state
from mae_ast.core.io.settings_note import assert_same

_KEYS = ("input_stats", "input_mean", "input_std")


def assert_same_statistics(path: str | os.PathLike[str], model: Mapping[str, Any]) -> None:
    """Compare the settings of input normalisation with those in a checkpoint.

    The statistics are loaded with the weights. Different settings would have no effect and would be
    recorded in later checkpoints.

    Args:
        path: checkpoint that the run resumes from.
        model: settings ``model.*``.

    Raises:
        ValueError: a setting differs; names the first one.
    """
    saved = (read_state(path).get("cfg") or {}).get("model") or {}
    keys = [key for key in _KEYS if key in saved and key in model]
    assert_same(
        path,
        {f"model.{key}": saved[key] for key in keys},
        {f"model.{key}": model[key] for key in keys},
        "statistics are loaded with the weights, so that others would have no effect; set them as "
        "before, or start another run from these weights (checkpoint.finetune_from_model, another "
        "folder)",
    )
