"""Scaled dot-product attention: (B, H, Q, D), (B, H, N, D) twice -> (B, H, Q, D), D a head's width.

It is torch's, which is fused wherever a device can. Two cases are made apart:

- on a CPU, where dropout takes the fused kernel away and bfloat16 gains nothing by it, scores are
  held as one matrix, in the number format of the queries;
- on a GPU in half precision, padded batches go through the kernel for sequences of any length,
  which computes no score of padding and holds no mask.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from mae_ast.core.nn.dropout import dropout

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # before torch 2.10
    varlen_attn = None  # type: ignore[assignment]

MAX_SCORES = 2**25  # B H Q N; above, the fused kernel saves more memory than it takes time
_HALF = (torch.float16, torch.bfloat16)
_WIDTH_MULTIPLE, _MAX_WIDTH = 8, 256  # of a head, in Flash's kernel for sequences of any length


class KeyPadding:
    """Keys that nothing attends to, which come after a clip's own.

    Args:
        padding_mask: (B, N) bool, True = padding.
    """

    def __init__(self, padding_mask: Tensor) -> None:
        self._own = ~padding_mask

    @property
    def attention_mask(self) -> Tensor:
        """(B, 1, 1, N) bool, True where to attend."""
        return self._own[:, None, None, :]

    @cached_property
    def ends(self) -> Tensor:
        """(2 B + 1,) int32: where own keys end and padding ends, clip by clip, of B N in a row."""
        batch, num_keys = self._own.shape
        begins = torch.arange(batch, device=self._own.device) * num_keys
        pairs = torch.stack((begins + self._own.sum(1), begins + num_keys), dim=1)
        return F.pad(pairs.flatten(), (1, 0)).int()


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | KeyPadding | None = None,
    dropout_p: float = 0.0,
) -> Tensor:
    """Attend.

    Args:
        q: (B, H, Q, D).
        k, v: (B, H, N, D).
        mask: bool, (B, H, Q, N) or what spreads to it, True where to attend; or which keys are
            padding; ``None``: everywhere.
        dropout_p: probability of dropping a weight.
    """
    if isinstance(mask, KeyPadding):
        if has_varlen(q, dropout_p):
            return attend_by_lengths(q, k, v, mask)
        mask = mask.attention_mask
    num_scores = q.shape[:-1].numel() * k.shape[2]
    is_cheaper = q.dtype == torch.bfloat16 and num_scores <= MAX_SCORES
    if q.device.type != "cpu" or not (dropout_p > 0 or is_cheaper):
        return F.scaled_dot_product_attention(q, k, v, mask, dropout_p=dropout_p)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if mask is not None:
        # The least number, not minus infinity: a clip of padding alone gives no NaN.
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return dropout(scores.softmax(-1), dropout_p) @ v


def attend_by_lengths(q: Tensor, k: Tensor, v: Tensor, padding: KeyPadding) -> Tensor:
    """:func:`attend` as sequences of different lengths, one after the other, without dropout.

    Nothing is moved: a clip's queries see its own keys, and no query the padding after them, which
    is a sequence by itself. So the lengths need not be known to the host.
    """
    batch, _, num_queries, _ = q.shape
    begins = torch.arange(batch + 1, device=q.device, dtype=torch.int32) * num_queries
    query_ends = begins.repeat_interleave(2)[1:]  # 0, Q, Q, 2 Q, 2 Q, ...
    rows = [x.transpose(1, 2).flatten(0, 1) for x in (q, k, v)]  # (B N, H, D)
    kernel = cast(Callable[..., Tensor], varlen_attn)  # torch leaves its type half unsaid
    y: Tensor = kernel(*rows, query_ends, padding.ends, num_queries, k.shape[2])
    attended: Tensor = y.unflatten(0, (batch, num_queries))
    return attended.transpose(1, 2)


def has_varlen(q: Tensor, dropout_p: float = 0.0) -> bool:
    """Return whether torch's kernel for sequences of different lengths takes these queries."""
    if q.device.type != "cuda" or q.dtype not in _HALF or dropout_p or varlen_attn is None:
        return False
    head_width = q.shape[-1]
    if head_width % _WIDTH_MULTIPLE or head_width > _MAX_WIDTH:
        return False
    return torch.cuda.get_device_capability(q.device) >= (8, 0)
