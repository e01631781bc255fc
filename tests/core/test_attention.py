"""Attention equals torch's in each number format, with masks, and drops weights as told."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from mae_ast.core import attention
from mae_ast.core.attention import attend


def draw(num_queries: int = 37, num_tokens: int = 50, dtype=torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(2, 3, n, 24, generator=generator).to(dtype).requires_grad_()
        for n in (num_queries, num_tokens, num_tokens)
    ]


def padding() -> Tensor:
    """True where to attend; the second clip has 20 tokens of 50."""
    return torch.arange(50).expand(2, 1, 1, 50) < torch.tensor([50, 20]).view(2, 1, 1, 1)


@pytest.mark.parametrize("mask", [None, padding()], ids=["whole", "padded"])
def test_bfloat16_is_as_near_to_float32_as_torchs_own(mask):
    q, k, v = draw(dtype=torch.bfloat16)
    wide = [x.detach().float().requires_grad_() for x in (q, k, v)]
    exact = F.scaled_dot_product_attention(*wide, mask)
    weights = torch.randn(exact.shape, generator=torch.Generator().manual_seed(1))
    grads = torch.autograd.grad((exact * weights).sum(), wide)

    def errors(attended: Tensor) -> list[float]:
        found = torch.autograd.grad((attended.float() * weights).sum(), (q, k, v))
        pairs = zip((attended.detach(), *found), (exact.detach(), *grads), strict=True)
        return [float((a.float() - b).norm() / b.norm()) for a, b in pairs]

    ours = errors(attend(q, k, v, mask))
    fused = errors(F.scaled_dot_product_attention(q, k, v, mask))
    assert max(ours) < 0.01
    assert all(mine < 2 * theirs for mine, theirs in zip(ours, fused, strict=True))


def test_many_scores_and_float32_are_torchs(monkeypatch):
    for dtype in (torch.float32, torch.bfloat16):
        q, k, v = draw(dtype=dtype)
        monkeypatch.setattr(attention, "MAX_SCORES", 10)
        expected = F.scaled_dot_product_attention(q, k, v, padding())
        assert torch.equal(attend(q, k, v, padding()), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropped_weights(dtype):
    """Values are ones, so each output is the sum of the weights that were kept, scaled."""
    torch.manual_seed(0)
    q, k, _ = draw(200, 50, dtype)
    v = torch.ones(2, 3, 50, 24, dtype=dtype)
    found = attend(q, k, v, None, 0.25).float()
    assert_close(found, found[..., :1].expand_as(found), rtol=0, atol=0)
    assert found.mean().item() == pytest.approx(1, abs=0.01)
    assert found.std().item() > 0.05
    scarce = attend(q, k, v, padding(), 0.9).float()
    assert (scarce[1, :, :, 0] == 0).float().mean() > (scarce[0, :, :, 0] == 0).float().mean()


def test_a_clip_of_padding_alone_gives_no_nan():
    q, k, v = draw(dtype=torch.bfloat16)
    nothing = torch.zeros(2, 1, 1, 50, dtype=torch.bool)
    y = attend(q, k, v, nothing)
    assert torch.isfinite(y).all()
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(y.sum(), (q, k, v)))
