"""Masking strategies: draw :class:`MaskIds` for a batch of equal grids of patches.

All strategies follow one scheme: give each patch a score and hide the M patches with the lowest
scores. For random masks the scores are noise. For chunks and spans, K blocks are placed at random,
and the score of a patch is the index of the first block that covers it, so that blocks are hidden
in the order of their draws until M patches are hidden.

There is no loop over clips, patches or blocks. All random numbers come from the ``generator`` that
is passed in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mae_ast.core.frontend.rows import RowClips, TokenEnds

Grid = tuple[int, int]  # patches along time, patches along mel

CHUNK_SIZES = (3, 5)  # smallest and largest side of a chunk, in patches (SSAST)

# K blocks leave a fraction exp(-K p) of the patches uncovered; K is this much larger than needed.
_COVER_MARGIN = 1.5


class MaskIds(NamedTuple):
    """Partition of each clip's patches into visible and masked ones.

    A tuple, so that trainers move it to a device like any other part of a batch.

    Args:
        visible_ids: (B, V) int64, the patches that the encoder sees, in ascending order.
        masked_ids: (B, M) int64, the patches that are hidden and predicted, in ascending order.
        padded: the clips have different numbers of patches, and rows are padded with -1. ``False``
            guarantees that there is no -1, so that no padding mask is needed.
        clips: ends of the clips of a row (see :mod:`mae_ast.core.frontend.rows`), whose ids count
            the patches of the whole row; ``None``: a batch of clips.
    """

    visible_ids: Tensor
    masked_ids: Tensor
    padded: bool = False
    clips: RowClips | None = None

    @classmethod
    def of(cls, fields: Sequence[Any]) -> MaskIds:
        """Restore a mask from the nested tuples that trainers make of it."""
        visible, masked, padded, clips = fields
        return cls(visible, masked, padded, None if clips is None else RowClips(*clips))

    def to(self, device: torch.device | str) -> MaskIds:
        """Return the ids on a device."""
        clips = None if self.clips is None else self.clips.to(device)
        return MaskIds(self.visible_ids.to(device), self.masked_ids.to(device), self.padded, clips)

    @property
    def num_patches(self) -> int:
        """Maximum number of patches of a clip, if none is padded."""
        return self.visible_ids.shape[1] + self.masked_ids.shape[1]

    @property
    def num_own(self) -> Tensor:
        """(B,) int64, number of patches of each clip."""
        return (self.visible_ids >= 0).sum(1) + (self.masked_ids >= 0).sum(1)

    @property
    def valid(self) -> Tensor | None:
        """(B, M) bool, the masked patches that are not padding; ``None``: all."""
        return self.masked_ids >= 0 if self.padded else None

    @property
    def masked_ends(self) -> Tensor | None:
        """(C + 1,) int64, ends of the masked patches of each clip of a row; ``None``: no row."""
        return None if self.clips is None else self.clips.masked_ends


def count_visible(num_patches: int, ratio: float) -> int:
    """Return V for N patches and the given mask ratio; at least one patch stays visible."""
    return max(1, int((1 - ratio) * num_patches))


def random_mask(
    batch_size: int,
    grid: Grid,
    ratio: float,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> MaskIds:
    """Hide random patches, drawn independently for each clip (He et al. 2022, MAE).

    Args:
        batch_size: B.
        grid: patches along time and mel; N is their product.
        ratio: fraction of patches to hide, between 0 and 1.
        generator: random number generator on ``device``; ``None``: torch's default.
        device: device of the ids.
    """
    num_patches = grid[0] * grid[1]
    scores = torch.rand(batch_size, num_patches, generator=generator, device=device)
    return hide_lowest(scores, num_patches - count_visible(num_patches, ratio))


def random_mask_batched(
    batch_size: int,
    grid: Grid,
    ratio: float,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> MaskIds:
    """Hide the same random patches in all clips of the batch (see :func:`random_mask`)."""
    shared = random_mask(1, grid, ratio, generator, device)
    visible, masked = shared.visible_ids, shared.masked_ids
    return MaskIds(visible.expand(batch_size, -1), masked.expand(batch_size, -1))


def chunk_mask(
    batch_size: int,
    grid: Grid,
    ratio: float,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> MaskIds:
    """Hide s x s chunks of patches, s drawn from 3..5 for each clip (Gong et al. 2022, SSAST).

    Chunks may extend beyond the edges of the grid, so that every patch is hidden with the same
    probability. The arguments are those of :func:`random_mask`.
    """
    num_patches = grid[0] * grid[1]
    num_masked = num_patches - count_visible(num_patches, ratio)
    smallest, largest = CHUNK_SIZES
    sides = torch.randint(
        smallest, largest + 1, (batch_size, 1), generator=generator, device=device
    )
    num_blocks = _blocks_needed(num_masked / num_patches, grid, (smallest, smallest))
    first = first_cover(grid, sides, sides, num_blocks, generator)
    noise = torch.rand(batch_size, num_patches, generator=generator, device=device)
    return hide_lowest(first.flatten(1) + noise, num_masked)


def retain_spans(
    batch_size: int,
    grid: Grid,
    density: float,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
    span_length: int = 10,
) -> MaskIds:
    """Hide spans of frame tokens, which may overlap (Baevski et al. 2020, wav2vec 2.0).

    Spans are drawn with replacement until exactly M tokens are hidden; the last one is cut.

    Args:
        batch_size: B.
        grid: (N, 1), since spans extend along time only.
        density: span starts per token, times the span length. It determines the number of hidden
            tokens: M = round(N (1 - exp(-density))).
        generator: random number generator on ``device``; ``None``: torch's default.
        device: device of the ids.
        span_length: length of a span in tokens.

    Raises:
        ValueError: the grid has more than one patch along mel.
    """
    num_patches = grid[0]
    if grid[1] != 1:
        raise ValueError(
            "mask_type retain_spans hides spans of time and needs frame tokens of 128 mel bins; "
            f"this grid has {grid[1]} patches along mel"
        )
    hidden = masked_fraction("retain_spans", density)
    num_masked = min(num_patches - 1, round(num_patches * hidden))
    length = torch.full((batch_size, 1), span_length, device=device)
    num_blocks = _blocks_needed(num_masked / num_patches, grid, (span_length, 1))
    first = first_cover(grid, length, torch.ones_like(length), num_blocks, generator)
    # Within the last span, earlier tokens are hidden first, so that it is cut at its end.
    in_order = torch.linspace(0, 0.9, num_patches, device=device)
    return hide_lowest(first.flatten(1) + in_order, num_masked)


MASK_TYPES: dict[str, Callable[..., MaskIds]] = {
    "random_mask": random_mask,
    "random_mask_batched": random_mask_batched,
    "chunk_mask": chunk_mask,
    "retain_spans": retain_spans,
}


def mask_strategy(mask_type: str, span_length: int) -> Callable[..., MaskIds]:
    """Return the strategy with the name ``mask_type``; only spans use ``span_length``."""
    strategy = MASK_TYPES[mask_type]
    is_spans = strategy is retain_spans
    return partial(strategy, span_length=span_length) if is_spans else strategy


def structured_mask(
    batch_size: int,
    grid: Grid,
    ratio_time: float,
    ratio_mel: float,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> MaskIds:
    """Hide whole time steps and whole mel rows of patches (Huang et al. 2022, Audio-MAE).

    A patch is visible if both its time step and its mel row are kept. Each clip has a mask of its
    own. This mask is used in fine-tuning.

    Args:
        batch_size: B.
        grid: patches along time and mel.
        ratio_time, ratio_mel: fractions of time steps and of mel rows to hide, from 0 to below 1.
        generator: random number generator on ``device``; ``None``: torch's default.
        device: device of the ids.
    """
    kept = []
    for size, ratio in zip(grid, (ratio_time, ratio_mel), strict=True):
        scores = torch.rand(batch_size, size, generator=generator, device=device)
        kept.append(hide_lowest(scores, size - count_visible(size, ratio)).visible_ids)
    visible = (kept[0].unsqueeze(2) * grid[1] + kept[1].unsqueeze(1)).flatten(1)
    num_patches = grid[0] * grid[1]
    scores = torch.zeros(batch_size, num_patches, device=device).scatter(1, visible, 1.0)
    return hide_lowest(scores, num_patches - visible.shape[1])


def scatter_tokens(
    visible: Tensor, mask_token: Tensor, mask: MaskIds, num_patches: int
) -> tuple[Tensor, Tensor | TokenEnds | None]:
    """Put visible tokens back in position and the mask token in all other positions.

    Args:
        visible: (B, V, D).
        mask_token: (D,).
        mask: partition of the patches.
        num_patches: N of the longest clip.

    Returns:
        The tokens (B, N, D) and the padding mask (B, N) bool, True = padding; or, of a row, the
        ends of its clips; ``None``: no padding.
    """
    batch, _, width = visible.shape
    slots, ids = num_patches, mask.visible_ids
    padding: Tensor | TokenEnds | None = None
    if mask.padded:
        # Padding is scattered to an extra slot, which is then removed.
        slots, ids = num_patches + 1, ids.where(ids >= 0, num_patches)
        padding = torch.arange(num_patches, device=ids.device) >= mask.num_own[:, None]
    if mask.clips is not None:
        padding = TokenEnds(mask.clips.ends, mask.clips.masked_ends)
    tokens = mask_token.to(visible.dtype).expand(batch, slots, width)
    tokens = tokens.scatter(1, ids.unsqueeze(2).expand(-1, -1, width), visible)[:, :num_patches]
    return tokens, padding


def hide_lowest(scores: Tensor, num_masked: int) -> MaskIds:
    """Mask the ``num_masked`` patches with the lowest scores (B, N); the rest is visible."""
    lowest = scores.topk(num_masked, dim=1, largest=False, sorted=False).indices
    hidden = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, lowest, True)
    ids = hidden.to(torch.uint8).argsort(dim=1, stable=True)
    num_visible = scores.shape[1] - num_masked
    return MaskIds(ids[:, :num_visible], ids[:, num_visible:])


def first_cover(
    grid: Grid,
    sides_time: Tensor,
    sides_mel: Tensor,
    num_blocks: int,
    generator: torch.Generator | None,
) -> Tensor:
    """Place K random blocks and return the index of the first one that covers each patch.

    A block starts anywhere from ``1 - side`` to the last patch of an axis, so that each patch is
    covered with the same probability, those in the corners of the grid included.

    Args:
        grid: (T', F'), patches along time and mel.
        sides_time, sides_mel: (B, 1) int64, size of the blocks of each clip.
        num_blocks: K.
        generator: random number generator on the device of the sides.

    Returns:
        (B, T', F') int16, or int32 if K exceeds its range; K where no block covers the patch.
    """
    in_time = _covered(grid[0], sides_time, num_blocks, generator)
    in_mel = _covered(grid[1], sides_mel, num_blocks, generator)
    # Blocks are ranked from K down, so that the first one is a maximum: a maximum over small
    # integers is many times faster than an argmax.
    dtype = torch.int16 if num_blocks < 2**15 else torch.int32
    rank = torch.arange(num_blocks, 0, -1, dtype=dtype, device=in_time.device)
    ranked = (in_time * rank[:, None]).unsqueeze(3) * in_mel.unsqueeze(2)  # (B, K, T', F')
    return num_blocks - ranked.amax(dim=1)


def _covered(
    size: int, sides: Tensor, num_blocks: int, generator: torch.Generator | None
) -> Tensor:
    """Draw K blocks along one axis and return (B, K, size) bool, True where a block covers it."""
    draw = torch.rand(len(sides), num_blocks, generator=generator, device=sides.device)
    corners = (draw * (size + sides - 1)).long() + 1 - sides  # (B, K)
    offset = torch.arange(size, device=sides.device) - corners.unsqueeze(2)
    return (offset >= 0) & (offset < sides.unsqueeze(2))


def _blocks_needed(ratio: float, grid: Grid, side: tuple[int, int]) -> int:
    """Return K such that K blocks of size ``side`` cover more than ``ratio`` of the patches."""
    probability = 1.0  # that a block covers a given patch
    for size, length in zip(grid, side, strict=True):
        probability *= min(1.0, length / (size + length - 1))
    ratio = min(ratio, 1 - 1 / (grid[0] * grid[1] + 1))
    return 4 + math.ceil(-math.log(1 - ratio) / probability * _COVER_MARGIN)


def pad_mask_ids(masks: Sequence[MaskIds]) -> MaskIds:
    """Stack masks of single clips into a batch; shorter rows are padded with -1."""
    visible = [mask.visible_ids[0] for mask in masks]
    masked = [mask.masked_ids[0] for mask in masks]
    padded = len({(len(v), len(m)) for v, m in zip(visible, masked, strict=True)}) > 1

    def stack(rows: list[Tensor]) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)

    return MaskIds(stack(visible), stack(masked), padded)


def masked_fraction(mask_type: str, ratio: float) -> float:
    """Return the fraction of patches that a strategy hides; for spans, ``ratio`` is a density."""
    return 1 - math.exp(-ratio) if mask_type == "retain_spans" else ratio


def check_mask(mask_type: str, ratio: float, patches_per_column: int) -> None:
    """Validate a masking strategy and its ratio before any data is read.

    Raises:
        ValueError: the strategy is unknown, or does not work with this ratio or these patches.
    """
    if mask_type not in MASK_TYPES:
        raise ValueError(
            f"mask_type {mask_type!r} is unknown; must be one of {', '.join(MASK_TYPES)}"
        )
    if mask_type == "retain_spans":
        if patches_per_column != 1:
            raise ValueError(
                "mask_type retain_spans needs frame tokens (ast_kernel_size_chan=128); this "
                f"configuration has {patches_per_column} patches along mel"
            )
        if not 0 < ratio < 10:
            raise ValueError(
                f"random_mask_prob {ratio} is not a span density; with mask_type retain_spans it "
                "must be between 0 and 10 (1.45 hides 76.5 % of the tokens, 0.74 hides 52.3 %)"
            )
    elif not 0 < ratio < 1:
        raise ValueError(
            f"random_mask_prob {ratio} is out of range; with mask_type {mask_type} it is the "
            "fraction of patches to hide, between 0 and 1 (0.75 is usual)"
        )
