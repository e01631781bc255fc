"""Scaled dot-product attention: q (B, H, Q, D), k and v (B, H, N, D) -> (B, H, Q, D).

D is the width of a head here. This is ``F.scaled_dot_product_attention``, except in these cases:

- On a CPU, with attention dropout (for which there is no fused kernel) or in bfloat16 (where the
  fused kernel is not faster), the scores are computed as matrices in the dtype of the queries;
  without gradients, a few heads at a time, so that they stay in the cache.
- On a GPU in half precision, padded batches and rows of clips use the kernel for sequences of
  variable length, which computes no scores of padding and needs no mask. On a CPU, the clips of a
  row are computed one after another, see :mod:`mae_ast.core.nn.row_attention`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from mae_ast.core.nn.dropout import dropout
from mae_ast.core.nn.row_attention import (
    WithinClips,
    attend_each_clip,
    attend_each_clip_with_dropout,
)

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # before torch 2.10
    varlen_attn = None  # type: ignore[assignment]

# Scores held at a time: B H Q N, or Q N without gradients; above it, the memory that the fused
# kernel saves is worth its time.
MAX_SCORES = 2**25
BLOCK_SCORES = 2**22  # scores of the heads that are computed at a time without gradients
_HALF = (torch.float16, torch.bfloat16)
_WIDTH_MULTIPLE, _MAX_WIDTH = 8, 256  # head widths of FlashAttention's variable-length kernel


class KeyPadding:
    """Padding of the keys, at the end of each clip.

    Args:
        padding_mask: (B, N) bool, True = padding.
    """

    def __init__(self, padding_mask: Tensor) -> None:
        self._valid = ~padding_mask

    @property
    def attention_mask(self) -> Tensor:
        """Attention mask (B, 1, 1, N) bool, True where to attend."""
        return self._valid[:, None, None, :]

    @cached_property
    def ends(self) -> Tensor:
        """(2 B + 1,) int32: 0, then for each clip the end of its keys and of its padding."""
        batch, num_keys = self._valid.shape
        begins = torch.arange(batch, device=self._valid.device) * num_keys
        pairs = torch.stack((begins + self._valid.sum(1), begins + num_keys), dim=1)
        return F.pad(pairs.flatten(), (1, 0)).int()


AttentionMask = Tensor | KeyPadding | WithinClips


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: AttentionMask | None = None,
    dropout_p: float = 0.0,
) -> Tensor:
    """Compute scaled dot-product attention.

    Args:
        q: (B, H, Q, D).
        k, v: (B, H, N, D).
        mask: bool tensor broadcastable to (B, H, Q, N), True where to attend; or the padding of the
            keys; or the clips of a row (B = 1); ``None``: attend everywhere.
        dropout_p: dropout probability of the attention weights.

    Returns:
        (B, H, Q, D).
    """
    if isinstance(mask, KeyPadding):
        if has_varlen(q, dropout_p):
            return attend_by_lengths(q, k, v, mask)
        mask = mask.attention_mask
    if isinstance(mask, WithinClips):
        if has_varlen(q, dropout_p):
            return attend_by_ends(q, k, v, mask)
        if q.device.type == "cpu":
            if dropout_p == 0:
                return attend_each_clip(q, k, v, mask)
            attend_clip = partial(attend, dropout_p=dropout_p)
            return attend_each_clip_with_dropout(q, k, v, mask, attend_clip)
        mask = mask.attention_mask(q.shape[2], k.shape[2])
    in_blocks = not (torch.is_grad_enabled() or dropout_p > 0)
    num_scores = q.shape[2 if in_blocks else 0 : -1].numel() * k.shape[2]  # held at a time
    is_cheaper = q.dtype == torch.bfloat16 and num_scores <= MAX_SCORES
    if q.device.type != "cpu" or not (dropout_p > 0 or is_cheaper):
        return F.scaled_dot_product_attention(q, k, v, mask, dropout_p=dropout_p)
    return (_attend_in_blocks if in_blocks else _attend_by_matrix)(q, k, v, mask, dropout_p)


def _attend_by_matrix(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout_p: float
) -> Tensor:
    """Compute attention through the matrix of scores, (..., Q, N)."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if mask is not None:
        # The minimum of the dtype, not -inf, so that a clip of nothing but padding gives no NaN.
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return dropout(scores.softmax(-1), dropout_p) @ v


def _attend_in_blocks(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout_p: float
) -> Tensor:
    """Compute :func:`_attend_by_matrix` for a few heads at a time."""
    batch, heads, num_queries, _ = q.shape
    size = max(1, BLOCK_SCORES // max(1, num_queries * k.shape[2]))
    if mask is not None:
        mask = mask.expand(batch, heads, *mask.shape[2:]).flatten(0, 1)
    qs, ks, vs = (x.flatten(0, 1).split(size) for x in (q, k, v))
    masks = [None] * len(qs) if mask is None else list(mask.split(size))
    blocks = zip(qs, ks, vs, masks, strict=True)
    attended = torch.cat([_attend_by_matrix(*each, dropout_p) for each in blocks])
    out: Tensor = attended.unflatten(0, (batch, heads))
    return out


def attend_by_lengths(q: Tensor, k: Tensor, v: Tensor, padding: KeyPadding) -> Tensor:
    """Compute :func:`attend` with the kernel for packed sequences of variable length.

    The padding stays where it is, as a sequence of keys without queries between the clips.
    Therefore nothing is copied, and the host need not know the lengths. There is no dropout.
    """
    batch, _, num_queries, _ = q.shape
    begins = torch.arange(batch + 1, device=q.device, dtype=torch.int32) * num_queries
    query_ends = begins.repeat_interleave(2)[1:]  # 0, Q, Q, 2 Q, 2 Q, ...
    rows = [x.transpose(1, 2).flatten(0, 1) for x in (q, k, v)]  # (B N, H, D)
    kernel = cast(Callable[..., Tensor], varlen_attn)  # torch types it incompletely
    y: Tensor = kernel(*rows, query_ends, padding.ends, num_queries, k.shape[2])
    attended: Tensor = y.unflatten(0, (batch, num_queries))
    return attended.transpose(1, 2)


def attend_by_ends(q: Tensor, k: Tensor, v: Tensor, within: WithinClips) -> Tensor:
    """Compute :func:`attend` of a row with the kernel for sequences of variable length."""
    rows = [x[0].transpose(0, 1) for x in (q, k, v)]  # (N, H, D)
    kernel = cast(Callable[..., Tensor], varlen_attn)
    y: Tensor = kernel(*rows, *within.int32, q.shape[2], k.shape[2])
    return y.transpose(0, 1).unsqueeze(0)


def has_varlen(q: Tensor, dropout_p: float = 0.0) -> bool:
    """Return whether torch's variable-length attention kernel supports these queries."""
    if q.device.type != "cuda" or q.dtype not in _HALF or dropout_p or varlen_attn is None:
        return False
    head_width = q.shape[-1]
    if head_width % _WIDTH_MULTIPLE or head_width > _MAX_WIDTH:
        return False
    return torch.cuda.get_device_capability(q.device) >= (8, 0)
