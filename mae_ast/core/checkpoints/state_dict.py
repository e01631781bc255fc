"""Compare the weights in a file with those of a model, and find values that are not finite."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

MAX_NAMED = 3  # keys in an error message


def mismatches(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """Describe keys that are missing, unknown, not tensors, or of another shape; empty if none.

    Args:
        wanted: weights of the model; only names and shapes are compared.
        found: weights in the file.
    """
    wrong = [
        f"{key} is {_shape(found[key])} in the file and {_shape(value)} in the model"
        for key, value in wanted.items()
        if key in found and _shape(found[key]) != _shape(value)
    ]
    problems = [
        *_named("missing: ", (key for key in wanted if key not in found)),
        *_named("unknown: ", (str(key) for key in found if key not in wanted)),
        *_named("", wrong),
    ]
    return "; ".join(problems)


def first_not_finite(weights: Mapping[str, Any]) -> str | None:
    """Return the name of the first weight with NaN or infinity; ``None`` if all are finite."""
    for name, value in weights.items():
        if not isinstance(value, Tensor) or not value.is_floating_point():
            continue
        # A sum takes a tenth of the time of isfinite, but may overflow for large finite values.
        if not value.sum(dtype=torch.float32).isfinite() and not value.isfinite().all():
            return name
    return None


def listing(names: Sequence[str]) -> str:
    """List the first names, and count the others."""
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more


def _shape(value: Any) -> Any:
    return tuple(value.shape) if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _named(what: str, keys: Iterable[str]) -> list[str]:
    names = list(keys)
    return [what + listing(names)] if names else []
