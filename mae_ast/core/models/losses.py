"""Pretraining losses, summed over masked patches: predictions and targets (B, M, P) -> scalars.

They are sums so that dividing them by the number of masked patches of *all* workers gives the exact
mean, however clips are distributed over batches. They are always computed in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class InfoNCE:
    """InfoNCE loss of a batch.

    Args:
        loss: scalar, in nats, summed over masked patches.
        num_correct: scalar, number of masked patches whose own target has the highest score.
    """

    loss: Tensor
    num_correct: Tensor


def reconstruction_loss(prediction: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
    """Compute the mean squared error of each patch, summed over masked patches.

    Args:
        prediction, target: (B, M, P).
        valid: (B, M) bool, False = padding; ``None``: all valid.
    """
    with torch.autocast(target.device.type, enabled=False):
        per_patch = (prediction.float() - target.float()).square().mean(dim=-1)
        return _sum(per_patch, valid)


def info_nce_loss(prediction: Tensor, target: Tensor, valid: Tensor | None = None) -> InfoNCE:
    """Compute the InfoNCE loss: classify each masked patch among the masked patches of its clip.

    logits[i, j] = prediction_i . target_j with a softmax over j, on raw targets and without
    temperature (Baade et al. 2022, MAE-AST; the original SSAST implementation uses a softmax over
    i).

    Args:
        prediction, target: (B, M, P).
        valid: (B, M) bool, False = padding; ``None``: all valid.
    """
    if target.shape[1] == 0:  # no patch is masked, as in a clip of one patch
        zero = prediction.float().sum()
        return InfoNCE(zero, zero.detach())
    with torch.autocast(target.device.type, enabled=False):
        logits = prediction.float() @ target.float().transpose(1, 2)  # (B, M, M)
        if valid is not None:
            logits = logits.masked_fill(~valid[:, None, :], torch.finfo(logits.dtype).min)
        positive = logits.diagonal(dim1=1, dim2=2)
        per_patch = logits.logsumexp(dim=-1) - positive
        correct = logits.argmax(dim=-1) == torch.arange(logits.shape[1], device=logits.device)
        return InfoNCE(_sum(per_patch, valid), _sum(correct.float().detach(), valid))


def _sum(per_patch: Tensor, valid: Tensor | None) -> Tensor:
    return per_patch.sum() if valid is None else per_patch.where(valid, 0.0).sum()
