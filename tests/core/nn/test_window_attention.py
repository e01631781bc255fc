"""Window attention equals masked full attention on any grid, at linear cost."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from mae_ast.core.nn.transformer import Transformer, TransformerLayer
from mae_ast.core.nn.window_attention import GridTransformer, Windows
from tests.core.vits import with_random_weights

WIDTH, HEADS = 16, 2
GRIDS = [(8, 8), (7, 8), (13, 6)]  # 4 x 4 windows fit; exceed the grid along time; along both axes
SHIFTS = [(2, 0), (2, 2)]


def build(*shifts: tuple[int, int] | None) -> GridTransformer:
    return with_random_weights(GridTransformer(shifts, (4, 4), WIDTH, 24, HEADS)).eval()


def tokens(grid: tuple[int, int], batch: int = 2, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, grid[0] * grid[1], WIDTH, generator=generator)


def window_of(place: int, grid: tuple[int, int], shift: tuple[int, int]) -> tuple[int, int]:
    """Return the window that contains a position; windows of 4 x 4 start at the shift."""
    t, f = divmod(place, grid[1])
    return (t - shift[0]) // 4, (f - shift[1]) // 4


def slow(
    model: GridTransformer, x: Tensor, grid: tuple[int, int], own: Tensor | None = None
) -> Tensor:
    """Compute attention query by query, over the valid keys in the window of each query."""
    num = grid[0] * grid[1]
    for layer, shift in zip(model.layers, model.shifts, strict=True):
        assert isinstance(layer, TransformerLayer)
        normed = layer.self_attn_layer_norm(x)
        attention = layer.self_attn
        q, k, v = (
            getattr(attention, f"{name}_proj")(normed).unflatten(2, (HEADS, -1)) for name in "qkv"
        )
        mixed = torch.zeros_like(q)
        for b in range(len(x)):
            for n in range(num):
                seen = [
                    m
                    for m in range(num)
                    if (shift is None or window_of(m, grid, shift) == window_of(n, grid, shift))
                    and (own is None or bool(own[b, m]))
                ]
                if not seen:
                    continue  # a window of nothing but padding
                for h in range(HEADS):
                    scores = k[b, seen, h] @ q[b, n, h] / (WIDTH // HEADS) ** 0.5
                    mixed[b, n, h] = scores.softmax(0) @ v[b, seen, h]
        x = x + attention.out_proj(mixed.flatten(2))
        x = x + layer.fc2(torch.nn.functional.gelu(layer.fc1(layer.final_layer_norm(x))))
    return model.layer_norm(x)


@pytest.mark.parametrize("shift", SHIFTS, ids=str)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
@torch.no_grad()
def test_window_attention_equals_masked_full_attention(grid, shift):
    model, x = build((0, 0), shift, None), tokens(grid)
    expected = slow(model, x, grid)
    assert_close(model(x, grid), expected, rtol=0, atol=1e-5)
    ids = torch.tensor([[3, 0, 20], [5, 5, 41]])
    assert_close(model(x, grid, ids=ids)[1], expected[1, ids[1]], rtol=0, atol=1e-5)
    last_is_local = build((0, 0), shift)
    assert_close(
        last_is_local(x, grid, ids=ids)[0], slow(last_is_local, x, grid)[0, ids[0]],
        rtol=0, atol=1e-5,
    )  # fmt: skip


@pytest.mark.parametrize("shift", SHIFTS, ids=str)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
@torch.no_grad()
def test_padding_is_not_attended_to(grid, shift):
    model = build((0, 0), shift, None)
    x = tokens(grid)
    own = torch.ones(2, grid[0] * grid[1], dtype=torch.bool)
    own[1, 2 * grid[1] :] = False  # whole windows of the second clip are padding
    found = model(x, grid, ~own)
    assert_close(found[own], slow(model, x, grid, own)[own], rtol=0, atol=1e-5)
    elsewhere = torch.where(own.unsqueeze(2), x, tokens(grid, seed=1))
    assert torch.equal(model(elsewhere, grid, ~own)[own], found[own])
    assert bool(torch.isfinite(found).all())


def test_windows_of_padding_have_finite_gradients():
    model, x = build((0, 0), (2, 2)).train(), tokens((8, 8)).requires_grad_()
    padding_mask = torch.ones(2, 64, dtype=torch.bool)
    padding_mask[0] = False
    model(x, (8, 8), padding_mask)[0].sum().backward()
    assert bool(torch.isfinite(x.grad).all())
    assert not x.grad[1].any()
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters())


@pytest.mark.parametrize("shift", [(0, 0), *SHIFTS], ids=str)
@pytest.mark.parametrize("grid", [*GRIDS, (1, 8), (3, 1)], ids=str)
def test_cut_and_join_are_inverse(grid, shift):
    windows = Windows(grid, (4, 4), shift)
    x = tokens(grid)
    cut = windows.cut(x)
    assert cut.shape[1:] == (16, WIDTH)
    assert torch.equal(windows.join(cut), x)
    assert windows.fits == (grid == (8, 8) and shift == (0, 0))
    # All positions in a window belong to this window.
    places = torch.arange(1.0, grid[0] * grid[1] + 1).reshape(1, -1, 1)
    for window in windows.cut(places).squeeze(2):
        there = [int(n) - 1 for n in window if n > 0]
        assert len({window_of(n, grid, shift) for n in there}) <= 1


def test_one_layer_does_not_see_other_windows():
    model, x = build((0, 0)), tokens((8, 8), 1)
    other = x.clone()
    other[:, 4 * 8 :] += 1  # the second half along time
    assert torch.equal(model(x, (8, 8))[:, : 4 * 8], model(other, (8, 8))[:, : 4 * 8])
    shifted = build((0, 0), (2, 0))  # the second layer's windows cover time steps 2 to 5
    changed = (shifted(x, (8, 8)) != shifted(other, (8, 8))).any(2).view(8, 8).all(1)
    assert changed.tolist() == [False] * 2 + [True] * 6


@torch.no_grad()
def test_global_stack_equals_the_transformer():
    model = build(None, None)
    theirs = Transformer(2, WIDTH, 24, HEADS, norm_first=True).eval()
    theirs.load_state_dict(model.state_dict())
    x = tokens((7, 8))
    padding_mask = torch.arange(56).expand(2, -1) > torch.tensor([[55], [20]])
    ids = torch.tensor([[1, 7], [3, 2]])
    assert model.is_global
    assert not build(None, (0, 0)).is_global
    for arguments in ({}, {"padding": padding_mask}, {"ids": ids}):
        assert torch.equal(model(x, (7, 8), **arguments), theirs(x, **arguments))


def test_cost_is_linear_in_the_length():
    """The number of windows grows linearly with the clip; their size does not grow."""
    sizes = []
    model = build((0, 0), (2, 0))
    model.layers[1].self_attn.register_forward_hook(lambda *args: sizes.append(args[1][0].shape))
    for length in (16, 32, 64):
        model(tokens((length, 8), 1), (length, 8))
    assert [size[1] for size in sizes] == [16] * 3
    assert [size[0] for size in sizes] == [2 * (4 * n + 1) for n in (1, 2, 4)]
