"""Dropout with a fast CPU implementation: (...) -> (...).

On a CPU, PyTorch draws one float per element on a single thread, which takes half as long as the
matrix products of a small transformer. Here, four elements share one draw of 64 bits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_STEPS = 2**16  # resolution of the probability: 16 random bits per element


def dropout(x: Tensor, p: float, training: bool = True) -> Tensor:
    """Zero each element with probability ``p`` and scale the others by 1 / (1 - p).

    On a CPU, ``p`` is rounded to a multiple of 1 / 65,536. Random numbers come from torch's default
    generator.
    """
    if p == 0 or not training:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, p)
    num_dropped = round(p * _STEPS)
    if torch.compiler.is_compiling():
        kept: Tensor = torch.ops.mae_ast.keep(x, num_dropped)
        return x * kept * _scale(num_dropped)
    dropped: Tensor = _Dropout.apply(x, num_dropped)  # type: ignore[no-untyped-call]
    return dropped


class Dropout(nn.Dropout):
    """:func:`dropout` as a module."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply dropout in training mode: (...) -> (...)."""
        return dropout(x, self.p, self.training)


def _draw(x: Tensor, num_dropped: int) -> Tensor:
    words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    bits = words.view(torch.int16)[: x.numel()].view(x.shape)
    return bits >= num_dropped - _STEPS // 2


def _scale(num_dropped: int) -> float:
    return _STEPS / (_STEPS - num_dropped) if num_dropped < _STEPS else 0.0


# A custom op is opaque to the compiler, which therefore does not recompute the draw in the backward
# pass. It takes x itself: as a function of the shape, two draws would be merged into one.
# (torch.library.custom_op takes tags from torch 2.7 on only.)
torch.library.define(
    "mae_ast::keep",
    "(Tensor x, int num_dropped) -> Tensor",
    tags=(torch.Tag.nondeterministic_seeded,),
)
torch.library.impl("mae_ast::keep", "default", _draw)
torch.library.register_fake(
    "mae_ast::keep", lambda x, num_dropped: x.new_empty(x.shape, dtype=torch.bool)
)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, num_dropped: int) -> Tensor:
        kept = _draw(x, num_dropped)
        ctx.save_for_backward(kept)
        ctx.scale = _scale(num_dropped)
        return (x * kept).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return (grad * kept).mul_(ctx.scale), None
