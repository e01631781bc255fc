"""Positions of tokens: fixed sinusoids in 1-D (N, D) and on a grid of time x mel, and learned ones.

Those in 1-D are of Vaswani et al. 2017, sine and cosine interleaved, those on a grid of MAE (He et
al. 2022). The learned ones are fitted to other grids as AST and SSAST do (Gong et al. 2021).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mae_ast.core.nn.transformer import INIT_STD


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


def grid_positions(grid: tuple[int, int], dim: int) -> Tensor:
    """Sinusoids of a place's mel row in the first half of the channels, of its time in the other.

    Within a half, channel i is sin(n / 10000^(i / (dim / 4))), and channel dim / 4 + i the cosine.
    On square grids these are MAE's, where its first axis is time.

    Args:
        grid: (T', F'), places along time and along mel.
        dim: D.

    Returns:
        (T' F', dim) float32, place t * F' + f.

    Raises:
        ValueError: 4 does not divide ``dim``.
    """
    if dim % 4:
        raise ValueError(f"positions on a grid need a width that 4 divides, not {dim}")
    quarter = dim // 4
    frequency = 10000.0 ** -(torch.arange(quarter, dtype=torch.float64) / quarter)

    def axis(size: int) -> Tensor:
        angle = torch.arange(size, dtype=torch.float64).unsqueeze(1) * frequency
        return torch.cat((angle.sin(), angle.cos()), dim=1)  # (size, dim / 2)

    in_time = axis(grid[0]).unsqueeze(1).expand(-1, grid[1], -1)
    in_mel = axis(grid[1]).unsqueeze(0).expand(grid[0], -1, -1)
    return torch.cat((in_mel, in_time), dim=2).flatten(0, 1).float()


class GridPositions(nn.Module):
    """:func:`grid_positions` on a module's device, grown when a longer clip comes.

    Prefix tokens (CLS) have no place: theirs are zeros. It can be computed, so it is no part of a
    checkpoint.

    Args:
        num_prefix: K.
        along_mel: F'.
        dim: D.

    Raises:
        ValueError: 4 does not divide ``dim``.
    """

    table: Tensor

    def __init__(self, num_prefix: int, along_mel: int, dim: int) -> None:
        super().__init__()
        self.num_prefix = num_prefix
        self.along_mel = along_mel
        self.dim = dim
        self.register_buffer("table", self._of(0), persistent=False)

    def forward(self, grid: tuple[int, int], columns: Tensor | None = None) -> Tensor:
        """Positions of prefix tokens and of a grid, (1, K + T' F', D).

        Args:
            grid: (T', F') of the batch.
            columns: of no matter: a clip's positions begin with the same ones, however long it is.
        """
        num_rows = self.num_prefix + grid[0] * self.along_mel
        if num_rows > len(self.table):
            # Powers of two: clips of all lengths grow the table a few times, not at each step.
            self.table = self._of(1 << (grid[0] - 1).bit_length()).to(self.table)
        return self.table[:num_rows].unsqueeze(0)

    def _of(self, along_time: int) -> Tensor:
        places = grid_positions((along_time, self.along_mel), self.dim)
        return torch.cat((places.new_zeros(self.num_prefix, self.dim), places))


class LearnedPositions(nn.Module):
    """A vector for each prefix token (CLS, distillation) and each place of a grid.

    Another grid gets them cut or interpolated, each axis by itself: an axis that is shorter takes
    the middle part of the table, one that is longer takes it stretched, bilinearly.

    Args:
        num_prefix: K, prefix tokens.
        grid: places along time and along mel; N is their product, place n = t * F' + f.
        dim: D.
    """

    def __init__(self, num_prefix: int, grid: tuple[int, int], dim: int) -> None:
        super().__init__()
        self.num_prefix = num_prefix
        self.grid = grid
        self.table = nn.Parameter(torch.empty(1, num_prefix + grid[0] * grid[1], dim))
        nn.init.trunc_normal_(self.table, std=INIT_STD)

    def forward(self, grid: tuple[int, int], columns: Tensor | None = None) -> Tensor:
        """Positions for a grid.

        Args:
            grid: (T', F') of the batch.
            columns: (B,) int64, each clip's own T', by which its positions are cut or stretched:
                they do not depend on its batch. ``None``: all clips fill the grid.

        Returns:
            (1, K + T' F', D), or (B, K + T' F', D) where ``columns`` are given.
        """
        if columns is None and grid == self.grid:
            return self.table
        prefix, places = self.table.split(
            [self.num_prefix, self.table.shape[1] - self.num_prefix], dim=1
        )
        fitted = fit_positions(places, self.grid, grid, columns)
        return torch.cat((prefix.expand(len(fitted), -1, -1), fitted), dim=1)


def fit_positions(
    places: Tensor, have: tuple[int, int], want: tuple[int, int], columns: Tensor | None = None
) -> Tensor:
    """(1, N, D) of the grid ``have`` -> (1 or B, N', D) of the grid ``want``, time first in both.

    ``columns`` as in :class:`LearnedPositions`.
    """
    device = places.device
    if columns is None:
        columns = torch.full((1,), want[0], device=device)
    table = places.reshape(*have, -1)
    if want[1] != have[1]:
        where = _where(torch.full((1,), want[1], device=device), want[1], have[1])[0]
        table = _read(table.transpose(0, 1), where).transpose(0, 1)  # (T, F', D)
    fitted = _read(table, _where(columns, want[0], have[0]))  # (B, T', F', D)
    return fitted.flatten(1, 2)


def _where(own: Tensor, num: int, have: int) -> Tensor:
    """Places 0 .. num - 1 of axes of lengths ``own`` (B,), on an axis of length ``have``."""
    index = torch.arange(num, device=own.device)
    own = own.unsqueeze(1)
    middle = (have // 2 - own // 2 + index).float()
    stretched = (index + 0.5) * (have / own.clamp(min=1)) - 0.5
    return torch.where(own < have, middle, stretched).clamp(0, have - 1)


def _read(table: Tensor, where: Tensor) -> Tensor:
    """(num, ..., D) at places between its rows, (...,) -> (..., ..., D)."""
    low = where.floor()
    weight = (where - low).to(table.dtype)
    low = low.long()
    high = (low + 1).clamp(max=len(table) - 1)
    weight = weight.reshape(*weight.shape, *[1] * (table.ndim - 1))
    return torch.lerp(table[low], table[high], weight)
