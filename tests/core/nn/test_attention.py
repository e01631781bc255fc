"""Attention equals torch's in each dtype, with masks and attention dropout."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from mae_ast.core.nn import attention
from mae_ast.core.nn.attention import KeyPadding, attend, attend_by_lengths, has_varlen


def draw(num_queries: int = 37, num_tokens: int = 50, dtype=torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(2, 3, n, 24, generator=generator).to(dtype).requires_grad_()
        for n in (num_queries, num_tokens, num_tokens)
    ]


def padding() -> Tensor:
    """Return an attention mask, True where to attend; the second clip has 20 tokens of 50."""
    return torch.arange(50).expand(2, 1, 1, 50) < torch.tensor([50, 20]).view(2, 1, 1, 1)


@pytest.mark.parametrize("mask", [None, padding()], ids=["whole", "padded"])
def test_bfloat16_is_as_accurate_as_torch(mask):
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


@pytest.mark.parametrize("block_scores", [1, 5 * 37 * 50, 2**22], ids=["head", "5 heads", "all"])
@pytest.mark.parametrize("mask", [None, padding()], ids=["whole", "padded"])
def test_blocks_of_heads_equal_the_whole_matrix(monkeypatch, mask, block_scores):
    q, k, v = draw(dtype=torch.bfloat16)
    expected = attend(q, k, v, mask)  # with gradients
    monkeypatch.setattr(attention, "BLOCK_SCORES", block_scores)
    sizes = []
    by_matrix = attention._attend_by_matrix
    monkeypatch.setattr(
        attention, "_attend_by_matrix", lambda q, *rest: sizes.append(len(q)) or by_matrix(q, *rest)
    )
    with torch.no_grad():
        found = attend(q, k, v, mask)
    assert sizes == {1: [1] * 6, 5 * 37 * 50: [5, 1], 2**22: [6]}[block_scores]
    assert_close(found, expected, rtol=0, atol=0.01)


def test_float32_and_large_inputs_use_torch(monkeypatch):
    for dtype in (torch.float32, torch.bfloat16):
        q, k, v = draw(dtype=dtype)
        monkeypatch.setattr(attention, "MAX_SCORES", 10)
        expected = F.scaled_dot_product_attention(q, k, v, padding())
        assert torch.equal(attend(q, k, v, padding()), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_dropout_rescales_the_kept_weights(dtype):
    """Values are ones, so that each output is the sum of the kept and rescaled weights."""
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


def varlen(q, k, v, query_ends, key_ends, max_q, max_k):
    """Compute what torch's variable-length kernel does, one sequence at a time; (rows, H, D)."""
    assert query_ends.dtype == key_ends.dtype == torch.int32
    out = torch.zeros_like(q)
    for n in range(len(query_ends) - 1):
        queries = slice(int(query_ends[n]), int(query_ends[n + 1]))
        keys = slice(int(key_ends[n]), int(key_ends[n + 1]))
        assert queries.stop - queries.start <= max_q
        assert keys.stop - keys.start <= max_k
        scores = torch.einsum("qhd,khd->hqk", q[queries], k[keys]) * q.shape[2] ** -0.5
        out[queries] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v[keys])
    assert int(query_ends[-1]) == len(q)
    assert int(key_ends[-1]) == len(k)
    return out


@pytest.mark.parametrize("num_queries", [50, 37])
@pytest.mark.parametrize("lengths", [(50, 20), (1, 50), (50, 50)])
def test_variable_length_attention_equals_masked_attention(monkeypatch, num_queries, lengths):
    monkeypatch.setattr(attention, "varlen_attn", varlen)
    q, k, v = (x.detach() for x in draw(num_queries))
    padding_mask = torch.arange(50) >= torch.tensor(lengths)[:, None]
    padding = KeyPadding(padding_mask)
    expected = F.scaled_dot_product_attention(q, k, v, padding.attention_mask)
    assert_close(attend_by_lengths(q, k, v, padding), expected, rtol=0, atol=1e-5)
    assert torch.equal(attend(q, k, v, padding), expected)


@pytest.mark.parametrize(
    ("width", "is_supported"), [(64, True), (256, True), (8, True), (12, False), (264, False)]
)
def test_head_widths_supported_by_flash_attention(monkeypatch, width, is_supported):
    """The queries stand in for a GPU tensor, which cannot be created here."""
    queries = SimpleNamespace(
        device=torch.device("cuda"), dtype=torch.bfloat16, shape=(2, 3, 50, width)
    )
    monkeypatch.setattr(attention, "varlen_attn", varlen)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert has_varlen(queries) is is_supported
