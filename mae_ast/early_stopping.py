"""Early stopping (``checkpoint.patience``) that a resume does not begin anew.

fairseq counts the validations without an improvement in a function's attributes, which no
checkpoint holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import fairseq_cli.train

_FIELDS = ("best", "num_runs")


def state() -> dict[str, float]:
    """Return the best validation value and the number of validations since; empty at first."""
    counter = fairseq_cli.train.should_stop_early
    return {name: float(getattr(counter, name)) for name in _FIELDS if hasattr(counter, name)}


def restore(saved: Mapping[str, Any]) -> None:
    """Set what :func:`state` returned."""
    for name in _FIELDS:
        if name in saved:
            setattr(fairseq_cli.train.should_stop_early, name, saved[name])


def has_stopped(patience: int) -> bool:
    """Return whether as many validations as ``patience`` (> 0) brought no improvement."""
    return 0 < patience <= state().get("num_runs", 0)
