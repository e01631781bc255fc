"""Keep the state of early stopping (``checkpoint.patience``) in checkpoints.

fairseq counts validations without improvement in a function's attributes, which are not saved.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import fairseq_cli.train

_FIELDS = ("best", "num_runs")


def state() -> dict[str, float]:
    """Return the best value and the number of validations since; empty before the first one."""
    counter = fairseq_cli.train.should_stop_early
    return {name: float(getattr(counter, name)) for name in _FIELDS if hasattr(counter, name)}


def restore(saved: Mapping[str, Any]) -> None:
    """Restore a state returned by :func:`state`."""
    for name in _FIELDS:
        if name in saved:
            setattr(fairseq_cli.train.should_stop_early, name, saved[name])


def reset() -> None:
    """Discard the state of a previous training in this process."""
    for name in _FIELDS:
        fairseq_cli.train.should_stop_early.__dict__.pop(name, None)


def has_stopped(patience: int) -> bool:
    """Return ``True`` if the last ``patience`` (> 0) validations brought no improvement."""
    return 0 < patience <= state().get("num_runs", 0)
