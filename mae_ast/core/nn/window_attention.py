"""A transformer on a grid whose layers may attend within windows, (B, N, D) -> (B, N, D).

A window is a rectangle of S neighbouring places, such as 4 x 4 (Liu et al. 2021, Swin). Windows are
batched: a layer sees (B W, S, D), W windows a clip, so that its cost grows with the clip's length
and not with its square. Nothing but attention mixes tokens, so whole layers run on windows.

Every second layer's windows may be shifted, so that what one layer's windows part the next one's
join. At the edges of the grid windows are cut off, which is what Swin's cyclic shift and its mask
come to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mae_ast.core.frontend.masking import Grid
from mae_ast.core.nn.attention import KeyPadding
from mae_ast.core.nn.transformer import LAYER_NORM_EPS, TransformerLayer, gather_tokens


@dataclass(frozen=True)
class Windows:
    """A grid cut into windows.

    Args:
        grid: (T', F'), places along time and along mel; N is their product.
        size: places of a window along time and along mel; S is their product.
        shift: a window begins at this place of each axis, and others side by side with it.
    """

    grid: Grid
    size: tuple[int, int]
    shift: tuple[int, int] = (0, 0)

    @property
    def fits(self) -> bool:
        """Whether no window hangs over an edge."""
        return not any(self._overhang)

    @property
    def num_places(self) -> int:
        """W S of a clip, those that hang over an edge included."""
        before_t, after_t, before_f, after_f = self._overhang
        return (self.grid[0] + before_t + after_t) * (self.grid[1] + before_f + after_f)

    def cut(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B W, S, C); zeros where a window hangs over an edge."""
        (time, mel), (before_t, after_t, before_f, after_f) = self.size, self._overhang
        x = x.unflatten(1, self.grid)
        if not self.fits:
            x = F.pad(x, (0, 0, before_f, after_f, before_t, after_t))
        x = x.unflatten(2, (-1, mel)).unflatten(1, (-1, time))  # (B, W_t, time, W_f, mel, C)
        return x.transpose(2, 3).reshape(-1, time * mel, x.shape[-1])

    def join(self, windows: Tensor) -> Tensor:
        """(B W, S, C) -> (B, N, C)."""
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
        """(B W, 1, 1, S) bool, True where to attend; ``None``: everywhere.

        Args:
            batch: B.
            padding_mask: (B, N) bool, True = padding; ``None``: there is none.
            like: on the device where it is wanted.
        """
        if padding_mask is None:
            if self.fits:
                return None
            padding_mask = torch.zeros(1, self.grid[0] * self.grid[1], device=like.device).bool()
        own = self.cut((~padding_mask).unsqueeze(2)).squeeze(2)  # (B W, S)
        # A window of nothing but padding attends to itself: a softmax over nothing is no number.
        own = own | ~own.any(1, keepdim=True)
        own = own.repeat(batch // len(padding_mask), 1)
        return own[:, None, None, :]

    @property
    def _overhang(self) -> tuple[int, int, int, int]:
        """Places that windows reach over: before and after in time, before and after in mel."""
        found: list[int] = []
        for places, size, shift in zip(self.grid, self.size, self.shift, strict=True):
            before = -shift % size
            found += [before, -(before + places) % size]
        return found[0], found[1], found[2], found[3]


class GridTransformer(nn.Module):
    """A stack of pre-norm layers on a grid.

    Args:
        shifts: for each layer where its windows begin, along time and along mel; ``None``: it
            attends to all places.
        window: places of a window, along time and along mel.
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
        """Whether no layer has windows; only then can there be tokens beside those of the grid."""
        return all(shift is None for shift in self.shifts)

    def forward(
        self,
        x: Tensor,
        grid: Grid,
        padding_mask: Tensor | None = None,
        ids: Tensor | None = None,
    ) -> Tensor:
        """Run all layers.

        Args:
            x: (B, N, D), N places of the grid; more tokens where all layers are global.
            grid: (T', F').
            padding_mask: (B, N) bool, True = padding, after a clip's own tokens; ``None``: there is
                none. What is not padding is not influenced by it.
            ids: (B, K) int64, the tokens that are wanted; ``None``: all.

        Returns:
            (B, N, D), or (B, K, D).
        """
        everywhere = None if padding_mask is None else KeyPadding(padding_mask)
        masks: dict[tuple[int, int], Tensor | None] = {}
        for layer, shift in zip(self.layers, self.shifts, strict=True):
            wanted = ids if layer is self.layers[-1] else None
            if shift is None:
                x = layer(x, everywhere, wanted)
                continue
            windows = Windows(grid, self.window, shift)
            if shift not in masks:
                masks[shift] = windows.attention_mask(len(x), padding_mask, x)
            x = windows.join(layer(windows.cut(x), masks[shift]))
            x = x if wanted is None else gather_tokens(x, wanted)
        out: Tensor = self.layer_norm(x)
        return out
