"""Attention within clips that lie side by side in a row: q (1, H, Q, D), k, v (1, H, N, D).

On a CPU, clips are computed one after another, in an operator of its own, so that a compiler sees
one operation of a fixed shape, however many clips there are.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from mae_ast.core.frontend.rows import TokenEnds, clips_of

# Q N of the longest clips whose scores are computed as matrices, and H Q N of a block of heads,
# which stays in the cache.
MAX_SCORES = 2**20
BLOCK_SCORES = 2**21


class WithinClips:
    """Restriction of attention to the clips of a row.

    Args:
        ends: ends of the clips' keys.
        selected: whether the queries are the selected tokens only.
    """

    def __init__(self, ends: TokenEnds, selected: bool = False) -> None:
        self.key_ends = ends.tokens
        self.query_ends = ends.tokens
        if selected and ends.selected is not None:
            self.query_ends = ends.selected

    @cached_property
    def int32(self) -> tuple[Tensor, Tensor]:
        """Ends of queries and keys, int32."""
        return self.query_ends.int(), self.key_ends.int()

    def attention_mask(self, num_queries: int, num_keys: int) -> Tensor:
        """Return the attention mask (1, 1, Q, N) bool, True where to attend."""
        queries, keys = (
            clips_of(torch.arange(num, device=ends.device), ends)
            for num, ends in ((num_queries, self.query_ends), (num_keys, self.key_ends))
        )
        return (queries[:, None] == keys)[None, None]


def attend_each_clip(q: Tensor, k: Tensor, v: Tensor, within: WithinClips) -> Tensor:
    """Compute attention clip by clip on a CPU, without dropout."""
    ends = within.query_ends, within.key_ends
    out: Tensor = torch.ops.mae_ast.attend_each_clip(q, k, v, *ends)[0]
    return out


def attend_each_clip_with_dropout(
    q: Tensor, k: Tensor, v: Tensor, within: WithinClips, attend: Callable[..., Tensor]
) -> Tensor:
    """Compute attention clip by clip with ``attend(q, k, v)`` of one clip."""
    queries, keys = within.query_ends.diff().tolist(), within.key_ends.diff().tolist()
    clips = zip(q.split(queries, 2), k.split(keys, 2), v.split(keys, 2), strict=True)
    return torch.cat([attend(*clip) if clip[0].shape[2] else clip[0] for clip in clips], dim=2)


def _split(row: Tensor, ends: Tensor) -> tuple[Tensor, ...]:
    """Return the views (H, Q, ...) of the clips of a row (1, H, Q, ...)."""
    return row[0].split_with_sizes(ends.diff().tolist(), dim=1)


def _blocks(q: Tensor, k: Tensor) -> list[slice]:
    """Return the heads of a clip whose scores are computed as matrices at a time.

    There are none where the fused kernel is faster: in float32, and for long clips.
    """
    heads, num_scores = len(q), q.shape[1] * k.shape[1]
    if q.dtype != torch.bfloat16 or num_scores > MAX_SCORES:
        return []
    size = BLOCK_SCORES // num_scores
    return [slice(begin, begin + size) for begin in range(0, heads, size)]


def _forward(
    q: Tensor, k: Tensor, v: Tensor, query_ends: Tensor, key_ends: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the output, laid out as (1, Q, H, D), and the log-sum-exp (1, H, Q) of the scores.

    The log-sum-exp is only that of the fused kernel, whose backward needs it.
    """
    batch, heads, num_queries, width = q.shape
    out = q.new_empty(batch, num_queries, heads, width).transpose(1, 2)
    sums = torch.zeros(batch, heads, num_queries, dtype=torch.float32)
    scaled = q * _scale(q)
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    of_queries = (_split(x, query_ends) for x in (q, scaled, out, sums))
    for q_clip, scaled_clip, out_clip, sums_clip, k_clip, v_clip in zip(
        *of_queries, _split(k, key_ends), _split(v, key_ends), strict=True
    ):
        if not q_clip.shape[1]:
            continue
        blocks = _blocks(q_clip, k_clip)
        for block in blocks:
            out_clip[block] = _weights(scaled_clip[block], k_clip[block]) @ v_clip[block]
        if not blocks:
            fused = kernel(q_clip[None], k_clip[None], v_clip[None])
            out_clip.copy_(fused[0][0])
            sums_clip.copy_(fused[1][0])
    return out, sums


def _backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    sums: Tensor,
    query_ends: Tensor,
    key_ends: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    grads = _zeros_like_tokens(q), _zeros_like_tokens(k), _zeros_like_tokens(v)
    scaled = q * _scale(q)
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    of_queries = (_split(x, query_ends) for x in (grad, q, scaled, out, sums, grads[0]))
    of_keys = (_split(x, key_ends) for x in (k, v, *grads[1:]))
    for grad_clip, q_clip, scaled_clip, out_clip, sums_clip, grad_q, *keys in zip(
        *of_queries, *of_keys, strict=True
    ):
        if not q_clip.shape[1]:
            continue
        k_clip, v_clip, grad_k, grad_v = keys
        blocks = _blocks(q_clip, k_clip)
        for block in blocks:
            grad_q[block], grad_k[block], grad_v[block] = _matrix_backward(
                grad_clip[block], scaled_clip[block], k_clip[block], v_clip[block]
            )
        if not blocks:
            inputs = grad_clip, q_clip, k_clip, v_clip, out_clip, sums_clip
            fused = kernel(*(x[None] for x in inputs), 0.0, False)
            for of_clip, found in zip((grad_q, grad_k, grad_v), fused, strict=True):
                of_clip.copy_(found[0])
    return grads


def _scale(q: Tensor) -> float:
    return float(q.shape[-1] ** -0.5)


def _weights(scaled: Tensor, k: Tensor) -> Tensor:
    """Return the attention weights (H, Q, N) of some heads, of their queries times the scale."""
    return (scaled @ k.mT).softmax(-1)


def _matrix_backward(grad: Tensor, scaled: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    """Return the gradients of the queries, keys and values of some heads; all (H, Q or N, D)."""
    weights = _weights(scaled, k)
    grad_scores = torch.ops.aten._softmax_backward_data(grad @ v.mT, weights, -1, k.dtype)
    return _scale(k) * (grad_scores @ k), grad_scores.mT @ scaled, weights.mT @ grad


def _zeros_like_tokens(x: Tensor) -> Tensor:
    """Return zeros (1, H, N, D) laid out as (1, N, H, D), as the projections want them."""
    batch, heads, num, width = x.shape
    return x.new_zeros(batch, num, heads, width).transpose(1, 2)


def _setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)


def _differentiate(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    q, k, v, query_ends, key_ends, out, sums = ctx.saved_tensors
    grads = torch.ops.mae_ast.attend_each_clip_backward(
        grad, q, k, v, out, sums, query_ends, key_ends
    )
    return (*grads, None, None)


torch.library.define(
    "mae_ast::attend_each_clip",
    "(Tensor q, Tensor k, Tensor v, Tensor query_ends, Tensor key_ends) -> (Tensor, Tensor)",
)
torch.library.impl("mae_ast::attend_each_clip", "cpu", _forward)
torch.library.register_fake(
    "mae_ast::attend_each_clip",
    lambda q, k, v, query_ends, key_ends: (
        _zeros_like_tokens(q),
        q.new_empty(q.shape[:3], dtype=torch.float32),
    ),
)
torch.library.register_autograd(
    "mae_ast::attend_each_clip", _differentiate, setup_context=_setup_context
)
torch.library.define(
    "mae_ast::attend_each_clip_backward",
    "(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor out, Tensor sums, Tensor query_ends, "
    "Tensor key_ends) -> (Tensor, Tensor, Tensor)",
)
torch.library.impl("mae_ast::attend_each_clip_backward", "cpu", _backward)
torch.library.register_fake(
    "mae_ast::attend_each_clip_backward",
    lambda grad, q, k, v, *_: tuple(_zeros_like_tokens(x) for x in (q, k, v)),
)
