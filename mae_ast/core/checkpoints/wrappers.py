"""Remove what training frameworks add to a state dict: outer keys and prefixes of names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

MODEL = "model"  # key of the state dict in what :func:`unwrap` returns

# Keys under which training code stores a state dict, next to what it needs to resume; Lightning
# uses "state_dict".
_HOLDERS = (
    *(MODEL, "state_dict", "model_state_dict", "model_state", "weights"),
    *("net", "network", "module"),
)
_DEPTH = 3
# Modules that wrap another one anywhere in a network: torch.compile, FSDP, activation
# checkpointing.
_WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
# Attributes of DataParallel and Lightning modules that hold the whole network.
_WHOLE = ("module.", "model.", "net.", "network.")


def unwrap(content: Mapping[str, Any], depth: int = _DEPTH) -> dict[str, Any]:
    """Put the state dict of a file under ``model``, without the prefixes of wrapper modules.

    Args:
        content: a file's content: a state dict, or a mapping with one under a usual key.
        depth: maximum number of nested keys to look under.

    Returns:
        The content with the state dict moved to ``model``; unchanged if there is no state dict.
    """
    for key in _HOLDERS:
        held = content.get(key)
        inner = unwrap(held, depth - 1) if depth and isinstance(held, Mapping) else {}
        if MODEL in inner and _is_state(inner[MODEL]):
            rest = {other: value for other, value in content.items() if other != key}
            return {**rest, MODEL: inner[MODEL]}
    return {MODEL: _own_names(content)} if _is_state(content) else dict(content)


def _own_names(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Strip the prefixes of wrapper modules from the names, and convert arrays to tensors."""
    names = {key: _without_wrappers(str(key)) for key in weights}
    while prefix := _common_prefix(list(names.values())):
        names = {key: name.removeprefix(prefix) for key, name in names.items()}
    if len(set(names.values())) < len(names):
        names = {key: str(key) for key in weights}  # stripped names would collide
    return {names[key]: _as_tensor(value) for key, value in weights.items()}


def _is_state(value: Any) -> bool:
    """Return whether a mapping contains weights directly."""
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
