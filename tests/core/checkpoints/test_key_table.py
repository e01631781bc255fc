"""Tables of keys: each transform and its inverse, layers, constants."""

from __future__ import annotations

import pytest
import torch

from mae_ast.core.checkpoints.key_table import (
    Row,
    added,
    constant,
    modules,
    prefixed,
    reshape,
    split,
    swap_axes,
    swap_grid,
    write,
)
from mae_ast.core.checkpoints.reader import LAYOUTS
from mae_ast.core.models.registry import SYSTEMS


@pytest.mark.parametrize(
    ("transform", "shape"),
    [
        (split(3), (6, 2)),
        (split(2, dim=1), (1, 4, 3)),
        (reshape((2, 1, 6), (2, 6)), (2, 1, 6)),
        (swap_grid((2, 3)), (6, 4)),
        (swap_grid((2, 3), dim=1, num_kept=2), (1, 8, 4)),
    ],
    ids=["qkv", "prefix", "kernel", "values of a patch", "positions"],
)
def test_writing_inverts_reading(transform, shape):
    read, write = transform
    value = torch.randn(shape)
    (back,) = write(*read(value))
    assert torch.equal(back, value)


def test_grid_is_reordered_after_the_entries_that_are_kept():
    mel_first = torch.tensor([9, 0, 10, 20, 1, 11, 21])  # 10 t + f, after one prefix token
    time_first = swap_axes(mel_first, (2, 3), num_kept=1)
    assert time_first.tolist() == [9, 0, 1, 10, 11, 20, 21]


def test_modules_are_repeated_for_each_layer():
    rows = prefixed("v.", modules({"a.*.qkv": ("l.*.q", "l.*.k"), "norm": "n"}, 2, split(2)))
    assert [row.theirs for row in rows] == [
        *(("v.a.0.qkv.weight",), ("v.a.0.qkv.bias",)),
        *(("v.a.1.qkv.weight",), ("v.a.1.qkv.bias",)),
        *(("v.norm.weight",), ("v.norm.bias",)),
    ]
    assert rows[3].ours == ("l.1.q.bias", "l.1.k.bias")


def test_constants_are_written_and_added_values_are_not():
    rows = [
        Row("mask", "mask_emb"),
        constant("frames", torch.tensor(7)),
        added({"mean": torch.tensor(0.5)}),
    ]
    state = write(rows, {"mask_emb": torch.ones(2), "mean": torch.tensor(3.0)})
    assert state.keys() == {"mask", "frames"}
    assert state["frames"] == 7


def test_each_layout_belongs_to_a_system():
    assert {layout.system for layout in LAYOUTS} <= SYSTEMS.keys()
    written = [layout.system for layout in LAYOUTS if layout.write is not None]
    assert len(written) == len(set(written))
