"""Scaled dot-product attention: (B, H, Q, D), (B, H, N, D) twice -> (B, H, Q, D), D a head's width.

It is torch's, which is fused wherever a device can; but on a CPU, where dropout takes that away and
bfloat16 gains nothing by it, scores are held as one matrix, in the number format of the queries.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mae_ast.core.dropout import dropout

MAX_SCORES = 2**25  # B H Q N; above, the fused kernel saves more memory than it takes time


def attend(
    q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor | None = None, dropout_p: float = 0.0
) -> Tensor:
    """Attend.

    Args:
        q: (B, H, Q, D).
        k, v: (B, H, N, D).
        attention_mask: bool, (B, H, Q, N) or what spreads to it, True where to attend.
        dropout_p: probability of dropping a weight.
    """
    num_scores = q.shape[:-1].numel() * k.shape[2]
    is_cheaper = q.dtype == torch.bfloat16 and num_scores <= MAX_SCORES
    if q.device.type != "cpu" or not (dropout_p > 0 or is_cheaper):
        return F.scaled_dot_product_attention(q, k, v, attention_mask, dropout_p=dropout_p)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if attention_mask is not None:
        # The least number, not minus infinity: a clip of padding alone gives no NaN.
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    return dropout(scores.softmax(-1), dropout_p) @ v
