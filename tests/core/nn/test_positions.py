"""Position embeddings: fixed ones equal their formula and grow; learned ones fit other grids."""

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
from tests.core.vits import interpolate_as_published, mel_first


def formula(position: int, channel: int, dim: int) -> float:
    angle = position / 10000 ** (2 * (channel // 2) / dim)
    return math.cos(angle) if channel % 2 else math.sin(angle)


@pytest.mark.parametrize("dim", [2, 6, 64])
def test_sinusoids_equal_the_formula(dim):
    table = sinusoidal_positions(600, dim)
    expected = torch.tensor([[formula(n, c, dim) for c in range(dim)] for n in range(600)])
    assert table.dtype == torch.float32
    assert_close(table, expected, rtol=0, atol=1e-4)


def test_an_odd_width_is_refused():
    with pytest.raises(ValueError, match="even width, not 33"):
        SinusoidalPositions(33)


def test_table_grows_and_keeps_its_values():
    positions = SinusoidalPositions(16)
    short = positions(7).clone()
    long = positions(1_500)
    assert long.shape == (1_500, 16)
    assert torch.equal(long[:7], short)
    assert torch.equal(positions(7), short)
    assert_close(long, sinusoidal_positions(1_500, 16), rtol=0, atol=0)


def test_table_grows_in_powers_of_two():
    positions = SinusoidalPositions(16)
    tables = set()
    held = []  # tables that stay alive have addresses of their own
    for length in range(1, 1_025):
        assert positions(length).shape == (length, 16)
        held.append(positions.table)
        tables.add(positions.table.data_ptr())
    assert len(tables) == 11


def test_table_is_not_in_the_state_dict():
    positions = SinusoidalPositions(16)
    positions(40)
    assert positions.state_dict() == {}
    assert list(positions.parameters()) == []


def test_grown_table_has_the_dtype_of_the_module():
    positions = SinusoidalPositions(16)
    positions(4)
    positions.half()
    assert positions(900).dtype == torch.float16
    assert_close(positions(900).float(), sinusoidal_positions(900, 16), rtol=0, atol=1e-3)


GRIDS = [  # time, mel
    ((64, 8), (64, 8)),
    ((64, 8), (31, 8)),
    ((64, 8), (101, 12)),  # SSAST, fine-tuning on AudioSet
    ((64, 8), (9, 12)),  # SSAST, fine-tuning on one second of speech
    ((24, 24), (101, 12)),  # AST, initialised from an image ViT
    ((24, 24), (12, 12)),
    ((7, 5), (6, 4)),
    ((512, 1), (99, 1)),
    ((512, 1), (1023, 1)),
]


@pytest.mark.parametrize(("have", "want"), GRIDS, ids=str)
def test_learned_positions_are_cropped_and_interpolated_as_in_ast(have, want):
    positions = LearnedPositions(2, have, 6)
    places = positions.table[:, 2:]
    expected = interpolate_as_published(mel_first(places, have), have[::-1], want[::-1])
    fitted = positions(want)
    assert fitted.shape == (1, 2 + want[0] * want[1], 6)
    assert torch.equal(fitted[:, :2], positions.table[:, :2])
    assert_close(mel_first(fitted[:, 2:], want), expected, rtol=0, atol=1e-6)
    assert_close(fit_positions(places, have, want), fitted[:, 2:], rtol=0, atol=0)


def test_learned_positions_do_not_depend_on_the_batch():
    positions = LearnedPositions(1, (20, 4), 6)
    num_steps = torch.tensor([33, 20, 7, 1, 0])
    together = positions((33, 6), num_steps)
    assert together.shape == (5, 1 + 33 * 6, 6)
    assert bool(torch.isfinite(together).all())
    for row, own in enumerate(num_steps[:4].tolist()):
        alone = positions((own, 6))[0]
        assert_close(together[row, : len(alone)], alone, rtol=0, atol=1e-6)


# Grid positions.


def formula_of_mae(side: int, dim: int) -> torch.Tensor:
    """Compute MAE's table for a square image, one patch at a time (He et al. 2022).

    The first half of the channels encodes the column, the second half the row; in each half, sines
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
def test_positions_on_a_square_grid_equal_mae(side, dim):
    assert_close(grid_positions((side, side), dim), formula_of_mae(side, dim), rtol=0, atol=1e-5)


def test_grid_positions_separate_time_and_mel():
    places = grid_positions((64, 8), 24).view(64, 8, 24)
    assert places.dtype == torch.float32
    # Each half of the channels encodes one axis only.
    mel, time = places.split(12, dim=2)
    assert torch.equal(mel, mel[:1].expand_as(mel))
    assert torch.equal(time, time[:, :1].expand_as(time))
    assert not torch.equal(places[3, 5], places[5, 3])
    assert len(places.flatten(0, 1).unique(dim=0)) == 64 * 8
    # The table of a smaller grid is part of the table of a larger one.
    assert torch.equal(grid_positions((70, 8), 24).view(70, 8, 24)[:64], places)
    assert torch.equal(grid_positions((64, 4), 24).view(64, 4, 24), places[:, :4])


def test_grid_positions_grow_and_are_zero_for_prefix_tokens():
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


def test_width_not_divisible_by_four_is_refused():
    with pytest.raises(ValueError, match="width divisible by 4, not 18"):
        GridPositions(1, 8, 18)
