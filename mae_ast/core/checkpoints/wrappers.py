"""Remove what training frameworks wrap around a state dict: outer keys, prefixes of names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

MODEL = "model"  # the key of the state dict once :func:`unwrap` has found it

# Keys under which files hold a state dict beside what training needs to resume; Lightning has
# "state_dict".
_HOLDERS = (
    *(MODEL, "state_dict", "model_state_dict", "model_state", "weights"),
    *("net", "network", "module"),
)
_DEPTH = 3
# Modules that wrap another one, anywhere in a network: torch.compile, FSDP, activation checkpoints.
_WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
# Attributes that hold the whole network in DataParallel and Lightning modules.
_WHOLE = ("module.", "model.", "net.", "network.")


def unwrap(content: Mapping[str, Any], depth: int = _DEPTH) -> dict[str, Any]:
    """Put a file's state dict under ``model``, with the names that its network uses.

    Args:
        content: a file's content: a state dict, or a mapping with one under a usual key.
        depth: maximum number of nested keys to look under.

    Returns:
        The content without that key, and ``model``; unchanged where there is no state dict.
    """
    for key in _HOLDERS:
        held = content.get(key)
        inner = unwrap(held, depth - 1) if depth and isinstance(held, Mapping) else {}
        if MODEL in inner and _is_state(inner[MODEL]):
            rest = {other: value for other, value in content.items() if other != key}
            return {**rest, MODEL: inner[MODEL]}
    return {MODEL: _own_names(content)} if _is_state(content) else dict(content)


def _own_names(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Name weights as their network does, without its wrappers; arrays become tensors."""
    names = {key: _without_wrappers(str(key)) for key in weights}
    while prefix := _common_prefix(list(names.values())):
        names = {key: name.removeprefix(prefix) for key, name in names.items()}
    if len(set(names.values())) < len(names):
        names = {key: str(key) for key in weights}  # two of them would be one
    return {names[key]: _as_tensor(value) for key, value in weights.items()}


def _is_state(value: Any) -> bool:
    """Return whether it contains weights directly."""
    return isinstance(value, Mapping) and any(
        isinstance(weight, (Tensor, np.ndarray)) for weight in value.values()
    )


def _without_wrappers(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _common_prefix(names: list[str]) -> str | None:
    return next((p for p in _WHOLE if all(name.startswith(p) for name in names)), None)


def _as_tensor(value: Any) -> Any:
    is_number = isinstance(value, np.ndarray) and value.dtype.kind in "fiub"
    return torch.from_numpy(value.copy()) if is_number else value
