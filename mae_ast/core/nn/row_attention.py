"""Attention within clips that lie side by side in a row: q (1, H, Q, D), k, v (1, H, N, D).

On a CPU, clips are computed one after another, in an operator of its own, so that a compiler sees
one operation of a fixed shape, however many clips there are.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from mae_ast.core.frontend.rows import TokenEnds, clips_of


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


def _clips(query_ends: Tensor, key_ends: Tensor) -> list[tuple[slice, slice]]:
    """Return the slices of the queries and of the keys of each clip that has queries."""
    pairs = zip(pairwise(query_ends.tolist()), pairwise(key_ends.tolist()), strict=True)
    return [(slice(*queries), slice(*keys)) for queries, keys in pairs if queries[0] < queries[1]]


def _forward(
    q: Tensor, k: Tensor, v: Tensor, query_ends: Tensor, key_ends: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the output, laid out as (1, Q, H, D), and the log-sum-exp (1, H, Q) of the scores."""
    batch, heads, num_queries, width = q.shape
    out = q.new_empty(batch, num_queries, heads, width).transpose(1, 2)
    sums = torch.empty(batch, heads, num_queries, dtype=torch.float32)
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    for own, keys in _clips(query_ends, key_ends):
        out[:, :, own], sums[:, :, own] = kernel(q[:, :, own], k[:, :, keys], v[:, :, keys])
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
    grad_q, grad_k, grad_v = (_zeros_like_tokens(x) for x in (q, k, v))
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    for own, keys in _clips(query_ends, key_ends):
        grad_q[:, :, own], grad_k[:, :, keys], grad_v[:, :, keys] = kernel(
            *(grad[:, :, own], q[:, :, own], k[:, :, keys], v[:, :, keys]),
            *(out[:, :, own], sums[:, :, own], 0.0, False),
        )
    return grad_q, grad_k, grad_v


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
