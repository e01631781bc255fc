"""Fixed positions equal their formula, grow, and are not stored; learned ones fit other grids."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from mae_ast.core.positions import (
    LearnedPositions,
    SinusoidalPositions,
    fit_positions,
    sinusoidal_positions,
)
from tests.core.vits import mel_first, positions_of_the_recipe


def formula(position: int, channel: int, dim: int) -> float:
    angle = position / 10000 ** (2 * (channel // 2) / dim)
    return math.cos(angle) if channel % 2 else math.sin(angle)


@pytest.mark.parametrize("dim", [2, 6, 64])
def test_equal_the_formula(dim):
    table = sinusoidal_positions(600, dim)
    expected = torch.tensor([[formula(n, c, dim) for c in range(dim)] for n in range(600)])
    assert table.dtype == torch.float32
    assert_close(table, expected, rtol=0, atol=1e-4)


def test_an_odd_width_is_refused():
    with pytest.raises(ValueError, match="even width, not 33"):
        SinusoidalPositions(33)


def test_grow_and_keep_what_they_had():
    positions = SinusoidalPositions(16)
    short = positions(7).clone()
    long = positions(1_500)
    assert long.shape == (1_500, 16)
    assert torch.equal(long[:7], short)
    assert torch.equal(positions(7), short)
    assert_close(long, sinusoidal_positions(1_500, 16), rtol=0, atol=0)


def test_do_not_grow_at_each_new_length():
    positions = SinusoidalPositions(16)
    tables = set()
    held = []  # tables that stay alive have addresses of their own
    for length in range(1, 1_025):
        assert positions(length).shape == (length, 16)
        held.append(positions.table)
        tables.add(positions.table.data_ptr())
    assert len(tables) == 11


def test_are_no_part_of_a_checkpoint():
    positions = SinusoidalPositions(16)
    positions(40)
    assert positions.state_dict() == {}
    assert list(positions.parameters()) == []


def test_growth_follows_the_type_of_the_module():
    positions = SinusoidalPositions(16)
    positions(4)
    positions.half()
    assert positions(900).dtype == torch.float16
    assert_close(positions(900).float(), sinusoidal_positions(900, 16), rtol=0, atol=1e-3)


GRIDS = [  # time, mel
    ((64, 8), (64, 8)),
    ((64, 8), (31, 8)),
    ((64, 8), (101, 12)),  # SSAST to fine-tuning on AudioSet
    ((64, 8), (9, 12)),  # and on a second of speech
    ((24, 24), (101, 12)),  # images to AST
    ((24, 24), (12, 12)),
    ((7, 5), (6, 4)),
    ((512, 1), (99, 1)),
    ((512, 1), (1023, 1)),
]


@pytest.mark.parametrize(("have", "want"), GRIDS, ids=str)
def test_positions_are_cut_and_interpolated_as_in_the_recipe(have, want):
    positions = LearnedPositions(2, have, 6)
    places = positions.table[:, 2:]
    expected = positions_of_the_recipe(mel_first(places, have), have[::-1], want[::-1])
    fitted = positions(want)
    assert fitted.shape == (1, 2 + want[0] * want[1], 6)
    assert torch.equal(fitted[:, :2], positions.table[:, :2])
    assert_close(mel_first(fitted[:, 2:], want), expected, rtol=0, atol=1e-6)
    assert_close(fit_positions(places, have, want), fitted[:, 2:], rtol=0, atol=0)


def test_each_clip_of_a_batch_has_the_positions_it_has_alone():
    positions = LearnedPositions(1, (20, 4), 6)
    columns = torch.tensor([33, 20, 7, 1, 0])
    together = positions((33, 6), columns)
    assert together.shape == (5, 1 + 33 * 6, 6)
    assert bool(torch.isfinite(together).all())
    for row, own in enumerate(columns[:4].tolist()):
        alone = positions((own, 6))[0]
        assert_close(together[row, : len(alone)], alone, rtol=0, atol=1e-6)
