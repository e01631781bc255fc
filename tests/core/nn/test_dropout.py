"""Dropout on a CPU: distribution, gradient, dependence on the seed, compilation."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from mae_ast.core.nn.dropout import Dropout, dropout
from mae_ast.core.nn.transformer import TransformerLayer


@pytest.mark.parametrize("p", [0.05, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_drop_rate_and_scale(p, dtype):
    torch.manual_seed(0)
    found = dropout(torch.ones(1_001, 999, dtype=dtype), p).float()
    kept = found != 0
    assert kept.float().mean().item() == pytest.approx(1 - p, abs=2e-3)
    # Elements are independent, although adjacent ones share a draw.
    for step in (1, 2, 3, 4):
        both = (kept[:, step:] & kept[:, :-step]).float().mean().item()
        assert both == pytest.approx((1 - p) ** 2, abs=3e-3)
    scale = torch.tensor(1 / (1 - p)).to(dtype).float()
    assert_close(found[kept], scale.expand(int(kept.sum())), rtol=1e-4, atol=0)


def test_gradient_uses_the_mask_of_the_forward_pass():
    torch.manual_seed(0)
    x = torch.randn(7, 5, 3, requires_grad=True)  # not a multiple of four
    y = dropout(x.transpose(0, 2), 0.3)
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert_close(y.detach().transpose(0, 2), (x * grad).detach())
    assert 0 < int((grad == 0).sum()) < grad.numel()


def test_draws_depend_on_the_seed():
    x = torch.ones(1_000)
    first, second = (torch.manual_seed(seed) and dropout(x, 0.5) for seed in (1, 1))
    assert torch.equal(first, second)
    assert not torch.equal(second, dropout(x, 0.5))


def test_extreme_probabilities_and_eval_mode():
    x = torch.ones(10)
    assert dropout(x, 0.0) is x
    assert dropout(x, 0.5, training=False) is x
    assert Dropout(0.5).eval()(x) is x
    assert dropout(x, 1.0).abs().sum() == 0
    assert (Dropout(0.5)(torch.ones(1_000)) == 0).any()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_dropout_is_one_graph_with_the_same_draws(dtype):
    """Attention weights, residual branches and activations are dropped, some of equal shape."""
    torch.manual_seed(0)
    layer = TransformerLayer(32, 32, 2, False, 0.2, 0.3, 0.4)
    x = torch.randn(2, 9, 32, requires_grad=True)

    def run(function):
        torch.manual_seed(7)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            y = function(x, None, None)
        return y, *torch.autograd.grad(y.float().square().sum(), (x, *layer.parameters()))

    torch._dynamo.reset()
    compiled = torch.compile(layer.compute, backend="aot_eager", fullgraph=True)
    for ours, expected in zip(run(compiled), run(layer.compute), strict=True):
        assert_close(ours, expected, rtol=1e-5, atol=1e-5 if dtype == torch.float32 else 1e-2)


def test_compiled_draws_of_equal_shape_differ():
    def two(x):
        return dropout(x, 0.5) * dropout(x + 1, 0.5)

    torch._dynamo.reset()
    found = torch.compile(two, backend="aot_eager", fullgraph=True)(torch.ones(10_000))
    assert (found != 0).float().mean().item() == pytest.approx(0.25, abs=0.03)
