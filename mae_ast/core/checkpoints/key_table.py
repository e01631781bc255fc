"""Convert state dicts between the names and shapes of a file and ours, both ways, by a table.

Each row pairs tensors of the file with tensors of ours and says how one becomes the other, so that
reading and writing cannot disagree::

    rows = [
        Row("cls_token", "prefix_tokens"),
        *modules({"blocks.*.norm1": "encoder.layers.*.self_attn_layer_norm"}, num_layers=12),
    ]
    weights = read(rows, config, state)
    state = write(rows, weights)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mae_ast.core.checkpoints.state_dict import mismatches
from mae_ast.core.models.registry import SYSTEMS, system_name

State = Mapping[str, Any]
Weights = dict[str, Tensor]
Names = str | tuple[str, ...]
Function = Callable[..., Iterable[Tensor]]
Transform = tuple[Function, Function]  # from the file's tensors to ours, and the inverse


def _copy(*values: Tensor) -> Iterable[Tensor]:
    return values


@dataclass(frozen=True)
class Row:
    """Tensors of a file and the tensors of ours that contain the same values.

    Args:
        theirs: names in the file; empty: the file does not contain these values.
        ours: names in our state dict; empty: our model does not need these values.
        transform: converts one to the other; default: no change.
    """

    theirs: Names
    ours: Names
    transform: Transform = (_copy, _copy)


def modules(
    names: Mapping[str, Names], num_layers: int = 0, transform: Transform = (_copy, _copy)
) -> Iterator[Row]:
    """Pair the weights and biases of modules.

    Args:
        names: modules of the file and the same modules of ours; names with ``*``, which stands for
            the number of a layer, are repeated for each layer.
        num_layers: number of layers.
        transform: converts the weights, and the biases.
    """
    for theirs, ours in names.items():
        for layer in range(num_layers) if "*" in theirs else [0]:
            for kind in ("weight", "bias"):
                yield Row(
                    theirs.replace("*", str(layer)) + f".{kind}",
                    tuple(f"{name.replace('*', str(layer))}.{kind}" for name in _tuple(ours)),
                    transform,
                )


def constant(name: str, value: Tensor, check: Callable[[Tensor], None] | None = None) -> Row:
    """Write a tensor that our model does not need; ``check`` may refuse the one that is read."""

    def read_nothing(found: Tensor) -> Iterable[Tensor]:
        if check is not None:
            check(found)
        return ()

    return Row(name, (), (read_nothing, lambda: [value]))


def added(values: Weights) -> Row:
    """Add tensors of ours, which the file does not contain."""
    return Row((), tuple(values), (values.values, lambda *_: ()))


def prefixed(prefix: str, rows: Iterable[Row]) -> list[Row]:
    """Return rows for a file whose names begin with ``prefix``."""
    return [
        Row(tuple(prefix + name for name in _tuple(row.theirs)), row.ours, row.transform)
        for row in rows
    ]


def split(count: int, dim: int = 0) -> Transform:
    """Split one tensor of the file into ``count`` equal parts."""
    return lambda whole: whole.chunk(count, dim), lambda *parts: [torch.cat(parts, dim)]


def reshape(theirs: Sequence[int], ours: Sequence[int]) -> Transform:
    """Reshape one tensor."""
    return lambda value: [value.reshape(*ours)], lambda value: [value.reshape(*theirs)]


def swap_grid(grid: tuple[int, int], dim: int = 0, num_kept: int = 0) -> Transform:
    """Reorder a grid along one dimension, as :func:`swap_axes`; ``grid`` is in our order."""
    return (
        lambda value: [swap_axes(value, grid[::-1], dim, num_kept)],
        lambda value: [swap_axes(value, grid, dim, num_kept)],
    )


def swap_axes(value: Tensor, grid: tuple[int, int], dim: int = 0, num_kept: int = 0) -> Tensor:
    """Reorder a grid (A, B), which a dimension is flattened from, from A-major to B-major.

    The first ``num_kept`` entries of the dimension stay where they are.
    """
    kept, rest = value.split([num_kept, value.shape[dim] - num_kept], dim)
    on_grid: Tensor = rest.unflatten(dim, grid)
    return torch.cat((kept, on_grid.transpose(dim, dim + 1).flatten(dim, dim + 1)), dim)


def read(rows: Sequence[Row], config: Any, state: State) -> Weights:
    """Convert a file's state dict to ours, after a check of its names and shapes.

    Args:
        rows: the table.
        config: configuration of the model, one of the ``SYSTEMS``.
        state: the file's state dict.

    Raises:
        ValueError: a key is missing, unknown, not a tensor, or of another shape; it is named.
    """
    with torch.device("meta"):  # names and shapes only
        expected = write(rows, SYSTEMS[system_name(config)].network(config).state_dict())
    if problems := mismatches(expected, state):
        raise ValueError(f"the weights do not match the model; {problems}")
    return _convert(state, ((row.theirs, row.transform[0], row.ours) for row in rows))


def write(rows: Iterable[Row], weights: State) -> Weights:
    """Convert our state dict to a file's."""
    return _convert(weights, ((row.ours, row.transform[1], row.theirs) for row in rows))


def _convert(state: State, steps: Iterable[tuple[Names, Function, Names]]) -> Weights:
    converted: Weights = {}
    for sources, function, targets in steps:
        values = function(*(state[name] for name in _tuple(sources)))
        converted.update(zip(_tuple(targets), values, strict=True))
    return converted


def _tuple(names: Names) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names
