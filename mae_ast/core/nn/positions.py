"""Position embeddings: fixed sinusoids in 1-D (N, D) and on a grid of time x mel, and learned ones.

The 1-D sinusoids follow Vaswani et al. 2017 (sine and cosine interleaved), those on a grid follow
MAE (He et al. 2022). Learned embeddings are cropped or interpolated to other grids as in AST and
SSAST (Gong et al. 2021).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mae_ast.core.frontend.fbank import NUM_MEL_BINS
from mae_ast.core.frontend.patches import PatchShape
from mae_ast.core.frontend.rows import RowClips, places_in_clips
from mae_ast.core.nn.transformer import INIT_STD


def sinusoidal_positions(num_positions: int, dim: int) -> Tensor:
    """Compute 1-D sinusoidal position embeddings.

    Channel 2i of position n is sin(n / 10000^(2i / dim)), channel 2i + 1 is the cosine.

    Returns:
        (num_positions, dim) float32.

    Raises:
        ValueError: ``dim`` is odd.
    """
    return _sinusoids(torch.arange(num_positions), dim)


def _sinusoids(places: Tensor, dim: int) -> Tensor:
    if dim % 2:
        raise ValueError(f"sinusoidal positions need an even width, not {dim}")
    frequency = torch.exp(torch.arange(0, dim, 2) * (-math.log(10000.0) / dim))
    angle = places.unsqueeze(1) * frequency
    return torch.stack((angle.sin(), angle.cos()), dim=2).flatten(1)


def grid_positions(
    grid: tuple[int, int], dim: int, step: tuple[float, float] = (1.0, 1.0)
) -> Tensor:
    """Compute sinusoidal position embeddings on a grid of time x mel.

    The first half of the channels encodes the position along mel, the second half the position
    along time. Within a half, channel i is sin(n / 10000^(i / (dim / 4))), and channel dim / 4 + i
    is the cosine. On a square grid these are the embeddings of MAE, with time as the rows of the
    image.

    Args:
        grid: (T', F'), patches along time and mel.
        dim: D.
        step: distance of adjacent patches along time and mel, in patches.

    Returns:
        (T' F', dim) float32; row t * F' + f is the embedding of position (t, f).

    Raises:
        ValueError: ``dim`` is not divisible by 4.
    """
    if dim % 4:
        raise ValueError(f"positions on a grid need a width divisible by 4, not {dim}")
    quarter = dim // 4
    frequency = 10000.0 ** -(torch.arange(quarter, dtype=torch.float64) / quarter)

    def axis(size: int, step: float) -> Tensor:
        angle = torch.arange(size, dtype=torch.float64).unsqueeze(1) * step * frequency
        return torch.cat((angle.sin(), angle.cos()), dim=1)  # (size, dim / 2)

    in_time = axis(grid[0], step[0]).unsqueeze(1).expand(-1, grid[1], -1)
    in_mel = axis(grid[1], step[1]).unsqueeze(0).expand(grid[0], -1, -1)
    return torch.cat((in_mel, in_time), dim=2).flatten(0, 1).float()


class FixedPositions(nn.Module):
    """Table of fixed position embeddings on the module's device; it grows for longer clips.

    Positions are in units of the size of a patch. With overlapping patches they are fractions, so
    that a patch keeps the position that pretraining without overlap gave to its place.

    Prefix tokens (CLS) have no position; their embeddings are zero. The table is not part of the
    state dict, since it can be computed.

    Args:
        kind: "sinusoidal": :func:`sinusoidal_positions` of the patches, counted time step by time
            step; "grid": :func:`grid_positions`.
        num_prefix: K, number of prefix tokens.
        shape: size and stride of the patches.
        dim: D.

    Raises:
        ValueError: the sinusoids need another width.
    """

    table: Tensor

    def __init__(self, kind: str, num_prefix: int, shape: PatchShape, dim: int) -> None:
        super().__init__()
        self.kind = kind
        self.num_prefix = num_prefix
        self.shape = shape
        self.dim = dim
        self.reset_buffers()

    def reset_buffers(self) -> None:
        """Compute a table without patches on the default device."""
        self.register_buffer("table", self.build(0), persistent=False)

    def forward(
        self,
        grid: tuple[int, int],
        num_steps: Tensor | None = None,
        clips: RowClips | None = None,
    ) -> Tensor:
        """Return the embeddings of the prefix tokens and a grid: (1, K + T' F', D).

        Args:
            grid: (T', F') of the batch.
            num_steps: ignored, since fixed positions do not depend on the length of a clip.
            clips: clips of a row, each of which starts at the first position; ``None``: no row.
        """
        num_rows = self.num_prefix + grid[0] * grid[1]
        if num_rows > len(self.table):
            # Powers of two: clips of all lengths grow the table a few times, not at each step.
            self.table = self.build(1 << (grid[0] - 1).bit_length()).to(self.table)
        if clips is None:
            return self.table[:num_rows].unsqueeze(0)
        places, _ = places_in_clips(clips.ends, num_rows - self.num_prefix)
        own = self.table[self.num_prefix + places]
        return torch.cat((self.table[: self.num_prefix], own)).unsqueeze(0)

    def build(self, along_time: int) -> Tensor:
        """Compute the table (K + T' F', D) for ``along_time`` time steps, on the default device."""
        shape, grid = self.shape, (along_time, self.shape.per_column)
        step = shape.time_stride / shape.time, shape.mel_stride / shape.mel
        if self.kind == "grid":
            patches = grid_positions(grid, self.dim, step)
        else:
            patches = self._sequence(grid, step)
        return torch.cat((patches.new_zeros(self.num_prefix, self.dim), patches))

    def _sequence(self, grid: tuple[int, int], step: tuple[float, float]) -> Tensor:
        """Compute 1-D embeddings (T' F', D); between two time steps, interpolate linearly.

        A fraction of a time step is not added to the index of a patch, which would then be that of
        a patch at another mel bin.
        """
        rows = torch.arange(grid[1]) * step[1]

        def at(columns: Tensor) -> Tensor:
            places = columns.unsqueeze(1) * (NUM_MEL_BINS / self.shape.mel) + rows
            return _sinusoids(places.flatten(), self.dim).reshape(-1, grid[1], self.dim)

        columns = torch.arange(grid[0]) * step[0]
        if step[0] == 1:
            return at(columns).flatten(0, 1)
        whole = columns.floor()
        weight = (columns - whole)[:, None, None]
        return torch.lerp(at(whole), at(whole + 1), weight).flatten(0, 1)


class LearnedPositions(nn.Module):
    """Learned embeddings of the prefix tokens (CLS, distillation) and of a grid of patches.

    For another grid, each axis is adapted separately: a shorter axis uses the centre of the learned
    one, a longer axis interpolates it linearly.

    Args:
        num_prefix: K, number of prefix tokens.
        grid: (T', F'), patches along time and mel; N = T' F', patch n = t * F' + f.
        dim: D.
    """

    def __init__(self, num_prefix: int, grid: tuple[int, int], dim: int) -> None:
        super().__init__()
        self.num_prefix = num_prefix
        self.grid = grid
        self.table = nn.Parameter(torch.empty(1, num_prefix + grid[0] * grid[1], dim))
        nn.init.trunc_normal_(self.table, std=INIT_STD)

    def forward(
        self,
        grid: tuple[int, int],
        num_steps: Tensor | None = None,
        clips: RowClips | None = None,
    ) -> Tensor:
        """Return the embeddings for a grid.

        Args:
            grid: (T', F') of the batch.
            num_steps: (B,) int64, the time steps T' of each clip, to which its embeddings are
                adapted, so that they do not depend on the batch; ``None``: T' for all clips.
            clips: clips of a row, to each of which the embeddings are adapted; ``None``: no row.

        Returns:
            (1, K + T' F', D), or (B, K + T' F', D) if ``num_steps`` is given.
        """
        if num_steps is None and clips is None and grid == self.grid:
            return self.table
        prefix, patches = self.table.split(
            [self.num_prefix, self.table.shape[1] - self.num_prefix], dim=1
        )
        if clips is None:
            fitted = fit_positions(patches, self.grid, grid, num_steps)
        else:
            fitted = fit_positions_of_row(patches, self.grid, grid, clips)
        return torch.cat((prefix.expand(len(fitted), -1, -1), fitted), dim=1)


def fit_positions(
    table: Tensor, have: tuple[int, int], want: tuple[int, int], num_steps: Tensor | None = None
) -> Tensor:
    """Crop or interpolate embeddings (1, N, D) of a grid to another grid: (1 or B, N', D).

    Args:
        table: (1, N, D), N = T F.
        have: (T, F), the grid of ``table``.
        want: (T', F'), the new grid; N' = T' F'.
        num_steps: (B,) int64, time steps of each clip; see :meth:`LearnedPositions.forward`.
    """
    device = table.device
    if num_steps is None:
        num_steps = torch.full((1,), want[0], device=device)
    table = _fit_mel(table, have, want[1])
    index = torch.arange(want[0], device=device)
    rows = _source_rows(index, num_steps.unsqueeze(1), have[0])
    return _interpolate(table, rows).flatten(1, 2)  # (B, T', F', D) -> (B, N', D)


def fit_positions_of_row(
    table: Tensor, have: tuple[int, int], want: tuple[int, int], clips: RowClips
) -> Tensor:
    """Do as :func:`fit_positions` for each clip of a row of the grid ``want``: (1, N', D)."""
    index, lengths = places_in_clips(clips.ends // want[1], want[0])
    rows = _source_rows(index, lengths, have[0])
    return _interpolate(_fit_mel(table, have, want[1]), rows).flatten(0, 1).unsqueeze(0)


def _fit_mel(table: Tensor, have: tuple[int, int], want: int) -> Tensor:
    """Crop or interpolate embeddings (1, T F, D) along mel: (T, F', D)."""
    table = table.reshape(*have, -1)
    if want == have[1]:
        return table
    index = torch.arange(want, device=table.device)
    rows = _source_rows(index, torch.full_like(index, want), have[1])
    return _interpolate(table.transpose(0, 1), rows).transpose(0, 1)


def _source_rows(index: Tensor, lengths: Tensor, have: int) -> Tensor:
    """Map positions ``index`` of axes of ``lengths`` to an axis of length ``have``.

    Returns:
        Fractional row indices, float32, of the shape that the two broadcast to.
    """
    centre = (have // 2 - lengths // 2 + index).float()
    stretched = (index + 0.5) * (have / lengths.clamp(min=1)) - 0.5
    return torch.where(lengths < have, centre, stretched).clamp(0, have - 1)


def _interpolate(table: Tensor, rows: Tensor) -> Tensor:
    """Interpolate the rows of a table (num, ..., D) linearly at fractional indices ``rows``."""
    low = rows.floor()
    weight = (rows - low).to(table.dtype)
    low = low.long()
    high = (low + 1).clamp(max=len(table) - 1)
    weight = weight.reshape(*weight.shape, *[1] * (table.ndim - 1))
    return torch.lerp(table[low], table[high], weight)
