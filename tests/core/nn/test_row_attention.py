"""Attention within the clips of a row equals masked attention of the whole row, on a CPU."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from mae_ast.core.frontend.rows import TokenEnds
from mae_ast.core.nn import row_attention
from mae_ast.core.nn.row_attention import WithinClips, attend_each_clip

ENDS = torch.tensor([0, 20, 20, 21, 60])  # a clip of nothing, and one of one token
SELECTED = torch.tensor([0, 5, 5, 6, 30])


@pytest.mark.parametrize(
    ("max_scores", "block_scores"),
    [(0, 1), (2**20, 2**21), (500, 500), (2000, 39 * 39)],
    ids=["fused", "all heads", "only short clips", "few heads"],
)
@pytest.mark.parametrize("selected", [None, SELECTED], ids=["all", "selected"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-6), (torch.bfloat16, 0.01)])
def test_equals_masked_attention(monkeypatch, max_scores, block_scores, selected, dtype, bound):
    monkeypatch.setattr(row_attention, "MAX_SCORES", max_scores)
    monkeypatch.setattr(row_attention, "BLOCK_SCORES", block_scores)
    generator = torch.Generator().manual_seed(0)
    num_queries = 60 if selected is None else 30
    row = [
        torch.randn(1, num, 3, 16, generator=generator).transpose(1, 2).to(dtype)
        for num in (num_queries, 60, 60, num_queries)
    ]
    within = WithinClips(TokenEnds(ENDS, selected), selected=True)

    def output_and_gradients(attend, inputs):
        *qkv, grad = (x.detach().clone() for x in inputs)
        out = attend(*(x.requires_grad_() for x in qkv))
        return out.detach(), *torch.autograd.grad(out, qkv, grad)

    found = output_and_gradients(lambda q, k, v: attend_each_clip(q, k, v, within), row)
    mask = within.attention_mask(num_queries, 60)
    exact = output_and_gradients(
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, mask), [x.double() for x in row]
    )
    for own, other in zip(found, exact, strict=True):
        assert (own.double() - other).norm() < bound * other.norm()
