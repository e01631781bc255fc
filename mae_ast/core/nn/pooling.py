"""Mean over the valid tokens of each clip: (B, N, D) -> (B, D)."""

from __future__ import annotations

from torch import Tensor


def masked_mean(tokens: Tensor, valid: Tensor | None = None) -> Tensor:
    """Return the mean over valid tokens, in the dtype of ``tokens``.

    Args:
        tokens: (B, N, D).
        valid: (B, N) bool, False = padding; ``None``: all valid. Without any, the mean is 0.
    """
    if valid is None:
        return tokens.mean(1)
    total = tokens.where(valid.unsqueeze(2), 0.0).sum(1)
    return total / valid.sum(1, keepdim=True).clamp(min=1)
