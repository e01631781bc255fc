"""Whether a file's weights are those that a model has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

_MAX_NAMED = 3  # keys that an error names


def misfits(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """What is missing, unknown, no tensor or of another shape; empty where all fits.

    Args:
        wanted: weights of the model; their values do not matter.
        found: weights of the file.
    """
    wrong = [
        f"{key} is {_shape(found[key])} in the file and {_shape(value)} in its model"
        for key, value in wanted.items()
        if key in found and _shape(found[key]) != _shape(value)
    ]
    problems = [
        *_named("missing: ", (key for key in wanted if key not in found)),
        *_named("unknown: ", (str(key) for key in found if key not in wanted)),
        *_named("", wrong),
    ]
    return "; ".join(problems)


def _shape(value: Any) -> Any:
    return tuple(value.shape) if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _named(what: str, keys: Iterable[str]) -> list[str]:
    listed = list(keys)
    if not listed:
        return []
    more = f" and {len(listed) - _MAX_NAMED} more" if len(listed) > _MAX_NAMED else ""
    return [f"{what}{', '.join(listed[:_MAX_NAMED])}{more}"]
