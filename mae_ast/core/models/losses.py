"""Pretraining losses, summed over masked patches: predictions and targets (B, M, P) -> scalars.

They are sums so that dividing them by the number of masked patches of *all* workers gives the exact
mean, however clips are distributed over batches. They are always computed in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from mae_ast.core.frontend.rows import clips_of

BLOCK_PATCHES = 2048  # masked patches of a row whose logits are held at a time


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


def info_nce_loss(
    prediction: Tensor,
    target: Tensor,
    valid: Tensor | None = None,
    ends: Tensor | None = None,
) -> InfoNCE:
    """Compute the InfoNCE loss: classify each masked patch among the masked patches of its clip.

    logits[i, j] = prediction_i . target_j with a softmax over j, on raw targets and without
    temperature (Baade et al. 2022, MAE-AST; the original SSAST implementation uses a softmax over
    i).

    Args:
        prediction, target: (B, M, P).
        valid: (B, M) bool, False = padding; ``None``: all valid.
        ends: (C + 1,) int64, ends of the masked patches of each clip of a row (B = 1); ``None``: no
            row. Targets of a row get no gradient.
    """
    if target.shape[1] == 0:  # no patch is masked, as in a clip of one patch
        zero = prediction.float().sum()
        return InfoNCE(zero, zero.detach())
    if ends is not None:
        return _info_nce_of_row(prediction, target, valid, ends)
    with torch.autocast(target.device.type, enabled=False):
        logits = prediction.float() @ target.float().transpose(1, 2)  # (B, M, M)
        if valid is not None:
            logits = logits.masked_fill(~valid[:, None, :], torch.finfo(logits.dtype).min)
        positive = logits.diagonal(dim1=1, dim2=2)
        per_patch = logits.logsumexp(dim=-1) - positive
        correct = logits.argmax(dim=-1) == torch.arange(logits.shape[1], device=logits.device)
        return InfoNCE(_sum(per_patch, valid), _sum(correct.float().detach(), valid))


def _info_nce_of_row(
    prediction: Tensor, target: Tensor, valid: Tensor | None, ends: Tensor
) -> InfoNCE:
    """Compute :func:`info_nce_loss` of a row, whose logits (M, M) are not held for the gradient.

    The gradient of the loss of patch i with respect to its prediction is the expectation of the
    targets under the softmax, minus its own target.
    """
    with torch.autocast(target.device.type, enabled=False):
        predicted, own = prediction[0].float(), target[0].float()
        with torch.no_grad():
            normaliser, expected, correct = torch.ops.mae_ast.info_nce_of_row(
                predicted.detach(), own, ends
            )
            loss = normaliser - (predicted * own).sum(-1)
        slope = (predicted * (expected - own)).sum(-1)  # its gradient is the loss's
        per_patch = (slope - slope.detach() + loss).unsqueeze(0)
        return InfoNCE(_sum(per_patch, valid), _sum(correct.unsqueeze(0), valid))


def _each_clip(prediction: Tensor, target: Tensor, ends: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return log-sum-exp (M,), expected target (M, P) and 1 for a correct choice (M,), by clip."""
    return _in_blocks(prediction, target, list(pairwise(ends.tolist())), None)


def _whole_row(prediction: Tensor, target: Tensor, ends: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Do as :func:`_each_clip` with masks of the whole row, without the host."""
    num = len(prediction)
    blocks = [(first, min(num, first + BLOCK_PATCHES)) for first in range(0, num, BLOCK_PATCHES)]
    clips = clips_of(torch.arange(num, device=ends.device), ends)
    return _in_blocks(prediction, target, blocks, clips)


def _in_blocks(
    prediction: Tensor, target: Tensor, blocks: list[tuple[int, int]], clips: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Classify the patches of each block among those of the block, or of their clip in the row."""
    normaliser, correct = (torch.empty_like(prediction[:, 0]) for _ in range(2))
    expected = torch.empty_like(prediction)
    for begin, end in blocks:
        if begin == end:
            continue
        block = slice(begin, end)
        choices = target[block] if clips is None else target
        logits = prediction[block] @ choices.T
        if clips is not None:
            logits.masked_fill_(clips[block, None] != clips, torch.finfo(logits.dtype).min)
        index = torch.arange(end - begin, device=logits.device) + (0 if clips is None else begin)
        correct[block] = (logits.argmax(-1) == index).float()
        normaliser[block] = logits.logsumexp(-1)
        expected[block] = logits.softmax(-1) @ choices
    return normaliser, expected, correct


# An operator of its own, which a compiler does not look into: on a CPU, it works clip by clip.
torch.library.define(
    "mae_ast::info_nce_of_row",
    "(Tensor prediction, Tensor target, Tensor ends) -> (Tensor, Tensor, Tensor)",
)
torch.library.impl("mae_ast::info_nce_of_row", "cpu", _each_clip)
torch.library.impl("mae_ast::info_nce_of_row", "cuda", _whole_row)
torch.library.register_fake(
    "mae_ast::info_nce_of_row",
    lambda prediction, target, ends: (
        torch.empty_like(prediction[:, 0]),
        torch.empty_like(prediction),
        torch.empty_like(prediction[:, 0]),
    ),
)


def _sum(per_patch: Tensor, valid: Tensor | None) -> Tensor:
    return per_patch.sum() if valid is None else per_patch.where(valid, 0.0).sum()
