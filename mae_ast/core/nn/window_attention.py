"""Transformer with window attention on a grid of patches: (B, N, D) -> (B, N, D).

A window is a rectangle of S adjacent positions, such as 4 x 4 (Liu et al. 2021, Swin). Windows are
batched: a layer computes (B W, S, D) with W windows per clip, so that the cost of attention is
linear in the length of the clip. Since only attention mixes tokens, whole layers run on windows.

The windows of every second layer may be shifted, so that information crosses the borders of the
windows. Windows are cropped at the edges of the grid, which is equivalent to Swin's cyclic shift
with an attention mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mae_ast.core.frontend.masking import Grid
from mae_ast.core.frontend.rows import TokenEnds, clips_of
from mae_ast.core.nn.transformer import (
    LAYER_NORM_EPS,
    TransformerLayer,
    attention_masks,
    gather_tokens,
)


@dataclass(frozen=True)
class Windows:
    """Partition of a grid into windows.

    Args:
        grid: (T', F'), patches along time and mel; N is their product.
        size: patches of a window along time and mel; S is their product.
        shift: offset of the windows along time and mel.
    """

    grid: Grid
    size: tuple[int, int]
    shift: tuple[int, int] = (0, 0)

    @property
    def fits(self) -> bool:
        """True if no window extends beyond the edges of the grid."""
        return not any(self._overhang)

    @property
    def num_places(self) -> int:
        """W S, the number of positions in all windows of a clip, beyond the edges included."""
        before_t, after_t, before_f, after_f = self._overhang
        return (self.grid[0] + before_t + after_t) * (self.grid[1] + before_f + after_f)

    def cut(self, x: Tensor) -> Tensor:
        """Cut into windows: (B, N, C) -> (B W, S, C), with zeros beyond the edges of the grid."""
        (time, mel), (before_t, after_t, before_f, after_f) = self.size, self._overhang
        x = x.unflatten(1, self.grid)
        if not self.fits:
            x = F.pad(x, (0, 0, before_f, after_f, before_t, after_t))
        x = x.unflatten(2, (-1, mel)).unflatten(1, (-1, time))  # (B, W_t, time, W_f, mel, C)
        return x.transpose(2, 3).reshape(-1, time * mel, x.shape[-1])

    def join(self, windows: Tensor) -> Tensor:
        """Put windows back together: (B W, S, C) -> (B, N, C)."""
        (time, mel), (before_t, after_t, before_f, after_f) = self.size, self._overhang
        along_time = (self.grid[0] + before_t + after_t) // time
        along_mel = (self.grid[1] + before_f + after_f) // mel
        x = windows.reshape(-1, along_time, along_mel, time, mel, windows.shape[-1])
        x = x.transpose(2, 3).flatten(3, 4).flatten(1, 2)
        x = x[:, before_t : before_t + self.grid[0], before_f : before_f + self.grid[1]]
        return x.flatten(1, 2)

    def attention_mask(
        self, batch: int, padding_mask: Tensor | None, like: Tensor
    ) -> Tensor | None:
        """Build the attention mask (B W, 1, 1, S) bool, True where to attend.

        Args:
            batch: B.
            padding_mask: (B, N) bool, True = padding; ``None``: no padding.
            like: a tensor on the device of the mask.

        Returns:
            The mask, or ``None`` if all positions attend to each other.
        """
        if padding_mask is None:
            if self.fits:
                return None
            padding_mask = torch.zeros(1, self.grid[0] * self.grid[1], device=like.device).bool()
        valid = self.cut((~padding_mask).unsqueeze(2)).squeeze(2)  # (B W, S)
        # A window of nothing but padding attends to itself: a softmax over no keys gives NaN.
        valid = valid | ~valid.any(1, keepdim=True)
        valid = valid.repeat(batch // len(padding_mask), 1)
        return valid[:, None, None, :]

    @property
    def _overhang(self) -> tuple[int, int, int, int]:
        """Positions beyond the edges: before and after along time, before and after along mel."""
        overhang: list[int] = []
        for length, size, shift in zip(self.grid, self.size, self.shift, strict=True):
            before = -shift % size
            overhang += [before, -(before + length) % size]
        return overhang[0], overhang[1], overhang[2], overhang[3]


class RowWindows:
    """Partition of each clip of a row into windows, with the interface of :class:`Windows`.

    The windows of a clip are those that :class:`Windows` gives for it alone. Their number depends
    on the clips; it is padded to one that suffices for any clips.

    Args:
        ends: (C + 1,) int64, ends of the clips' patches.
        grid: (T', F') of the row.
        size, shift: as in :class:`Windows`.
    """

    def __init__(
        self, ends: Tensor, grid: Grid, size: tuple[int, int], shift: tuple[int, int] = (0, 0)
    ) -> None:
        self.num_patches = grid[0] * grid[1]
        steps, self.device = ends // grid[1], ends.device
        before = -shift[0] % size[0]
        lengths = steps.diff()
        counts = (before + lengths + size[0] - 1) // size[0] * (lengths > 0)
        last = F.pad(counts.cumsum(0), (1, 0))  # (C + 1,), ends of the clips' windows
        # A clip has at most two windows more than its whole ones.
        window = torch.arange(grid[0] // size[0] + 2 * len(lengths), device=self.device)
        clip = clips_of(window, last).clamp(max=len(lengths) - 1)
        first = (window - last[clip]) * size[0] - before
        step = first[:, None] + torch.arange(size[0], device=self.device)  # within the clip
        is_own = (step >= 0) & (step < lengths[clip][:, None]) & (window < last[-1])[:, None]
        step = step + steps[clip][:, None]
        before = -shift[1] % size[1]
        along_mel = (before + grid[1] + size[1] - 1) // size[1]
        mel = (torch.arange(along_mel * size[1], device=self.device) - before).view(-1, size[1])
        is_in = is_own[:, None, :, None] & ((mel >= 0) & (mel < grid[1]))[:, None, :]
        places = step[:, None, :, None] * grid[1] + mel[:, None, :]  # (W_t, W_f, time, mel)
        num_places = size[0] * size[1]
        self._valid = is_in.reshape(-1, num_places)
        self._places = places.reshape(-1, num_places).where(self._valid, self.num_patches)

    def cut(self, x: Tensor) -> Tensor:
        """Cut into windows: (1, N, C) -> (W, S, C), with zeros where a window has no patch."""
        return F.pad(x[0], (0, 0, 0, 1))[self._places]

    def join(self, windows: Tensor) -> Tensor:
        """Put windows back together: (W, S, C) -> (1, N, C)."""
        places = self._places.flatten()
        order = torch.arange(len(places), device=self.device)
        source = places.new_empty(self.num_patches + 1).scatter(0, places, order)
        return windows.flatten(0, 1)[source[: self.num_patches]].unsqueeze(0)

    def attention_mask(self) -> Tensor:
        """Build the attention mask (W, 1, 1, S) bool, True where to attend."""
        # A window without patches attends to itself: a softmax over no keys gives NaN.
        valid = self._valid | ~self._valid.any(1, keepdim=True)
        return valid[:, None, None, :]


class GridTransformer(nn.Module):
    """Stack of pre-norm transformer layers on a grid, with window or global attention.

    Args:
        shifts: for each layer, the offset of its windows along time and mel; ``None``: global
            attention.
        window: patches of a window along time and mel.
        embed_dim, ffn_embed_dim, num_heads, layer_norm_eps: as in
            :class:`mae_ast.core.nn.transformer.TransformerLayer`.
    """

    def __init__(
        self,
        shifts: Sequence[tuple[int, int] | None],
        window: tuple[int, int],
        embed_dim: int,
        ffn_embed_dim: int,
        num_heads: int,
        layer_norm_eps: float = LAYER_NORM_EPS,
    ) -> None:
        super().__init__()
        self.shifts = tuple(shifts)
        self.window = window
        self.layers = nn.ModuleList(
            TransformerLayer(
                embed_dim, ffn_embed_dim, num_heads, norm_first=True, layer_norm_eps=layer_norm_eps
            )
            for _ in self.shifts
        )
        self.layer_norm = nn.LayerNorm(embed_dim, layer_norm_eps)

    @property
    def is_global(self) -> bool:
        """True if all layers are global; only then may there be tokens besides the grid (CLS)."""
        return all(shift is None for shift in self.shifts)

    def forward(
        self,
        x: Tensor,
        grid: Grid,
        padding: Tensor | TokenEnds | None = None,
        ids: Tensor | None = None,
    ) -> Tensor:
        """Run all layers.

        Args:
            x: (B, N, D), one token per patch of the grid; with prefix tokens if all layers are
                global.
            grid: (T', F'), patches along time and mel.
            padding: as in :meth:`mae_ast.core.nn.transformer.Transformer.layer_outputs`.
            ids: (B, K) int64, the tokens to return; ``None``: all tokens.

        Returns:
            (B, N, D), or (B, K, D).
        """
        mask, last_mask = attention_masks(padding, selects=ids is not None)
        known: dict[tuple[int, int], tuple[Windows | RowWindows, Tensor | None]] = {}
        for layer, shift in zip(self.layers, self.shifts, strict=True):
            is_last = layer is self.layers[-1]
            layer_ids = ids if is_last else None
            if shift is None:
                x = layer(x, last_mask if is_last else mask, layer_ids)
                continue
            if shift not in known:
                known[shift] = self._windows(x, grid, shift, padding)
            windows, window_mask = known[shift]
            x = windows.join(layer(windows.cut(x), window_mask))
            x = x if layer_ids is None else gather_tokens(x, layer_ids)
        out: Tensor = self.layer_norm(x)
        return out

    def _windows(
        self, x: Tensor, grid: Grid, shift: tuple[int, int], padding: Tensor | TokenEnds | None
    ) -> tuple[Windows | RowWindows, Tensor | None]:
        """Return the windows of a shift, and their attention mask."""
        if isinstance(padding, TokenEnds):
            of_clips = RowWindows(padding.tokens, grid, self.window, shift)
            return of_clips, of_clips.attention_mask()
        windows = Windows(grid, self.window, shift)
        return windows, windows.attention_mask(len(x), padding, x)
