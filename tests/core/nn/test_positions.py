"""Position embeddings: fixed ones equal their formula and grow; learned ones fit other grids."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from mae_ast.core.frontend.patches import PatchShape
from mae_ast.core.nn.positions import (
    FixedPositions,
    LearnedPositions,
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


PATCHES, FRAMES = PatchShape(16, 16), PatchShape(2, 128)


@pytest.mark.parametrize(
    ("kind", "dim", "message"),
    [("sinusoidal", 33, "even width, not 33"), ("grid", 18, "width divisible by 4, not 18")],
)
def test_unsuitable_width_is_refused(kind, dim, message):
    with pytest.raises(ValueError, match=message):
        FixedPositions(kind, 0, PATCHES, dim)


@pytest.mark.parametrize("shape", [PATCHES, FRAMES], ids=["patches", "frames"])
@pytest.mark.parametrize("kind", ["sinusoidal", "grid"])
def test_fixed_positions_grow_and_keep_their_values(kind, shape):
    positions = FixedPositions(kind, 1, shape, 16)
    assert not positions.state_dict()
    assert not list(positions.parameters())
    per_column, tables = shape.per_column, set()
    held = []  # tables that stay alive have addresses of their own
    for along_time in range(1, 129):
        found = positions((along_time, per_column), torch.tensor([1, along_time]))
        held.append(positions.table)
        tables.add(positions.table.data_ptr())
        count = along_time * per_column
        assert found.shape == (1, 1 + count, 16)
        assert not found[0, 0].any()  # the prefix token has no position
        expected = (
            sinusoidal_positions(count, 16)
            if kind == "sinusoidal"
            else grid_positions((along_time, per_column), 16)
        )
        assert torch.equal(found[0, 1:], expected)
    assert len(tables) == 8  # powers of two
    half = positions.bfloat16()
    assert half((200, per_column)).dtype == torch.bfloat16


@pytest.mark.parametrize("size", [16, 2])
@pytest.mark.parametrize("kind", ["sinusoidal", "grid"])
def test_overlapping_patches_at_the_same_place_have_the_same_position(kind, size):
    """With half the stride, every second patch is where one without overlap is; all differ."""
    height = 16 if size == 16 else 128
    plain = PatchShape(size, height)
    overlapping = PatchShape(size, height, size // 2, height // 2 if height < 128 else 128)
    grids = [shape.grid(10 * size) for shape in (plain, overlapping)]
    assert grids == ([(10, 8), (19, 15)] if size == 16 else [(10, 1), (19, 1)])
    wanted, found = (
        FixedPositions(kind, 0, shape, 16)(grid)[0].unflatten(0, grid)
        for shape, grid in zip((plain, overlapping), grids, strict=True)
    )
    assert_close(found[::2, ::2], wanted, rtol=0, atol=1e-5)
    different = len(found.flatten(0, 1).unique(dim=0))
    assert different == grids[1][0] * grids[1][1]


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
