"""Fixed positions equal their formula, grow, and are not stored; learned ones fit other grids."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from mae_ast.core.nn.positions import (
    GridPositions,
    LearnedPositions,
    SinusoidalPositions,
    fit_positions,
    grid_positions,
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


# On a grid.


def formula_of_mae(side: int, dim: int) -> torch.Tensor:
    """MAE's table of a square image, place by place (He et al. 2022, its published program).

    The first half of the channels is of the place in its row, the other of the row; in each, sines
    come before cosines.
    """
    rows = []
    for row in range(side):
        for column in range(side):
            rates = [10000 ** -(i / (dim / 4)) for i in range(dim // 4)]
            rows.append(
                [f(n * rate) for n in (column, row) for f in (math.sin, math.cos) for rate in rates]
            )
    return torch.tensor(rows)


@pytest.mark.parametrize(("side", "dim"), [(4, 8), (14, 24)])
def test_those_on_a_square_grid_are_maes(side, dim):
    assert_close(grid_positions((side, side), dim), formula_of_mae(side, dim), rtol=0, atol=1e-5)


def test_those_on_a_grid_differ_in_time_and_mel():
    places = grid_positions((64, 8), 24).view(64, 8, 24)
    assert places.dtype == torch.float32
    # Either half tells one axis, and nothing of the other.
    mel, time = places.split(12, dim=2)
    assert torch.equal(mel, mel[:1].expand_as(mel))
    assert torch.equal(time, time[:, :1].expand_as(time))
    assert not torch.equal(places[3, 5], places[5, 3])
    assert len(places.flatten(0, 1).unique(dim=0)) == 64 * 8
    # The sizes of the grid are separate: of another one, it is a part.
    assert torch.equal(grid_positions((70, 8), 24).view(70, 8, 24)[:64], places)
    assert torch.equal(grid_positions((64, 4), 24).view(64, 4, 24), places[:, :4])


def test_those_on_a_grid_grow_behind_those_of_prefix_tokens():
    positions = GridPositions(1, 8, 16)
    short = positions((3, 8)).clone()
    assert short.shape == (1, 1 + 24, 16)
    assert not short[0, 0].any()
    assert torch.equal(short[0, 1:], grid_positions((3, 8), 16))
    long = positions((100, 8), torch.tensor([3, 100]))
    assert long.shape == (1, 1 + 800, 16)
    assert torch.equal(long[:, :25], short)
    assert torch.equal(positions((3, 8)), short)
    assert not positions.state_dict()
    half = GridPositions(1, 8, 16).bfloat16()
    assert half((3, 8)).dtype == torch.bfloat16


def test_a_width_that_four_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="a width that 4 divides, not 18"):
        GridPositions(1, 8, 18)
