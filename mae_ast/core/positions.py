"""Fixed 1-D sinusoidal positions (Vaswani et al. 2017, interleaved sine and cosine), (N, D)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def sinusoidal_positions(num_positions: int, dim: int) -> Tensor:
    """Position n, channel 2i: sin(n / 10000^(2i/dim)); channel 2i + 1: the cosine.

    Returns:
        (num_positions, dim) float32.

    Raises:
        ValueError: ``dim`` is odd.
    """
    if dim % 2:
        raise ValueError(f"sinusoidal positions need an even width, not {dim}")
    position = torch.arange(num_positions).unsqueeze(1)
    frequency = torch.exp(torch.arange(0, dim, 2) * (-math.log(10000.0) / dim))
    angle = position * frequency
    return torch.stack((angle.sin(), angle.cos()), dim=2).flatten(1)


class SinusoidalPositions(nn.Module):
    """The same table on a module's device, grown when a longer clip comes.

    It can be computed, so it is no part of a checkpoint.
    """

    table: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.register_buffer("table", sinusoidal_positions(0, dim), persistent=False)

    def forward(self, num_positions: int) -> Tensor:
        """Positions 0 .. num_positions - 1 as (num_positions, D)."""
        if num_positions > len(self.table):
            # Powers of two: clips of all lengths grow the table a few times, not at each step.
            rows = 1 << (num_positions - 1).bit_length()
            self.table = sinusoidal_positions(rows, self.dim).to(self.table)
        return self.table[:num_positions]
