"""Weight averaging over the checkpoints of several epochs, as AST does on AudioSet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from mae_ast.core.checkpoints.reader import CheckpointError, check_weights, read_state


def average(paths: Sequence[Path]) -> dict[str, Tensor]:
    """Return the mean of each weight over checkpoints.

    Integer tensors, such as counters, are taken from the last checkpoint.

    Args:
        paths: checkpoints written by training, at least one.

    Raises:
        CheckpointError: a checkpoint cannot be read, or its weights have other names or shapes.
    """
    last = _weights(paths[-1])
    if len(paths) == 1:
        return last
    sums = {name: value.double() for name, value in last.items() if value.is_floating_point()}
    for path in paths[:-1]:
        weights = _weights(path)
        check_weights(last, weights, path)
        for name in sums:
            sums[name] += weights[name]
    means = {name: (total / len(paths)).to(last[name].dtype) for name, total in sums.items()}
    return last | means


def _weights(path: Path) -> dict[str, Tensor]:
    weights = read_state(path).get("model")
    if not isinstance(weights, dict) or not all(torch.is_tensor(w) for w in weights.values()):
        raise CheckpointError(f"{path}: holds no model")
    return weights
