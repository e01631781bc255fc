"""Which patches to hide: a strategy draws ``MaskIds`` for a batch of equal grids.

One idea covers all strategies: give each patch a score and hide the M patches with the lowest.
For random masks the score is noise. For chunks and spans, K blocks are dropped at random places
and a patch's score is the number of the first block that covers it, so the blocks are hidden in
the order in which they fell until M is reached.

No loop over clips, patches or blocks; every draw comes from the ``generator`` that is passed in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

Grid = tuple[int, int]  # patches along time, patches along mel

CHUNK_SIZES = (3, 5)  # smallest and largest side of a chunk, in patches (SSAST)

# The share of patches that K blocks leave uncovered is exp(-K p); K aims this much above the mark.
_COVER_MARGIN = 1.5


@dataclass(frozen=True)
class MaskIds:
    """The two halves of a partition of each clip's patches, each half in ascending order.

    Args:
        visible_ids: (B, V) int64, what the encoder sees.
        masked_ids: (B, M) int64, what is hidden and to be predicted.
        padded: clips have different numbers of patches, and rows end in -1. ``False`` promises
            that no -1 occurs, so that no padding mask needs to be built.
    """

    visible_ids: Tensor
    masked_ids: Tensor
    padded: bool = False


def count_visible(num_patches: int, ratio: float) -> int:
    """V of a clip with N patches of which ``ratio`` are hidden: at least one stays visible."""
    return max(1, int((1 - ratio) * num_patches))


def random_mask(
    batch_size: int,
    grid: Grid,
    ratio: float,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> MaskIds:
    """Hide random patches, each clip its own (He et al. 2022).

    Args:
        batch_size: B.
        grid: patches along time and mel; N is their product.
        ratio: fraction hidden, between 0 and 1.
        generator: source of the draw, on ``device``.
        device: where the ids are wanted.
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
    """:func:`random_mask`, the same for the whole batch."""
    one = random_mask(1, grid, ratio, generator, device)
    return MaskIds(one.visible_ids.expand(batch_size, -1), one.masked_ids.expand(batch_size, -1))


def chunk_mask(
    batch_size: int,
    grid: Grid,
    ratio: float,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> MaskIds:
    """Hide s x s chunks of patches, s drawn from 3..5 for each clip (Gong et al. 2022, SSAST).

    Chunks may hang over the edges, so that every patch is equally likely to be hidden.
    Arguments as in :func:`random_mask`.
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
    """Hide spans of frame tokens (Baevski et al. 2020, wav2vec 2.0).

    Spans fall with replacement until exactly M tokens are hidden, and the last one is cut.

    Args:
        batch_size: B.
        grid: (N, 1): spans lie along time.
        density: span starts a token, times the span's length: M = round(N (1 - exp(-density))).
        generator: source of the draw, on ``device``.
        device: where the ids are wanted.
        span_length: tokens of a span.

    Raises:
        ValueError: the grid has several patches above one another.
    """
    num_patches = grid[0]
    if grid[1] != 1:
        raise ValueError(
            "mask_type retain_spans hides spans of time and needs frame tokens "
            f"(128 mel bins each); here {grid[1]} patches lie above one another"
        )
    num_masked = min(num_patches - 1, round(num_patches * (1 - math.exp(-density))))
    length = torch.full((batch_size, 1), span_length, device=device)
    num_blocks = _blocks_needed(num_masked / num_patches, grid, (span_length, 1))
    first = first_cover(grid, length, torch.ones_like(length), num_blocks, generator)
    # Within the last span, the earliest tokens are hidden first: it is cut at its end.
    in_order = torch.linspace(0, 0.9, num_patches, device=device)
    return hide_lowest(first.flatten(1) + in_order, num_masked)


MASK_TYPES: dict[str, Callable[..., MaskIds]] = {
    "random_mask": random_mask,
    "random_mask_batched": random_mask_batched,
    "chunk_mask": chunk_mask,
    "retain_spans": retain_spans,
}


def mask_strategy(mask_type: str, span_length: int) -> Callable[..., MaskIds]:
    """The strategy of that name; ``span_length`` is for spans only."""
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
    """Hide whole columns and whole rows of patches (Huang et al. 2022, Audio-MAE).

    Each clip has its own. What stays is where the columns that stay meet the rows that stay. It is
    used in fine-tuning.

    Args:
        batch_size: B.
        grid: patches along time (columns) and mel (rows).
        ratio_time, ratio_mel: fractions of columns and of rows hidden, from 0 to below 1.
        generator: source of the draw, on ``device``.
        device: where the ids are wanted.
    """
    stay = []
    for size, ratio in zip(grid, (ratio_time, ratio_mel), strict=True):
        scores = torch.rand(batch_size, size, generator=generator, device=device)
        stay.append(hide_lowest(scores, size - count_visible(size, ratio)).visible_ids)
    visible = (stay[0].unsqueeze(2) * grid[1] + stay[1].unsqueeze(1)).flatten(1)
    num_patches = grid[0] * grid[1]
    scores = torch.zeros(batch_size, num_patches, device=device).scatter(1, visible, 1.0)
    return hide_lowest(scores, num_patches - visible.shape[1])


def scatter_tokens(
    visible: Tensor, mask_token: Tensor, mask: MaskIds, num_patches: int
) -> tuple[Tensor, Tensor | None]:
    """Visible tokens in their places, and the mask token in all others.

    Args:
        visible: (B, V, D).
        mask_token: (D,).
        mask: V and M.
        num_patches: N, of the longest clip.

    Returns:
        (B, N, D), and (B, N) bool, True = padding; ``None``: there is none.
    """
    batch, _, width = visible.shape
    slots, padding_mask, ids = num_patches, None, mask.visible_ids
    if mask.padded:
        # Padding goes to one slot more, which is cut off again.
        slots, ids = num_patches + 1, ids.where(ids >= 0, num_patches)
        per_clip = (mask.visible_ids >= 0).sum(1) + (mask.masked_ids >= 0).sum(1)
        padding_mask = torch.arange(num_patches, device=ids.device) >= per_clip[:, None]
    tokens = mask_token.to(visible.dtype).expand(batch, slots, width)
    tokens = tokens.scatter(1, ids.unsqueeze(2).expand(-1, -1, width), visible)[:, :num_patches]
    return tokens, padding_mask


def hide_lowest(scores: Tensor, num_masked: int) -> MaskIds:
    """(B, N) scores to the M lowest as masked ids and the rest as visible ids."""
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
    """Number of the first of K random blocks that covers each patch; K where none does.

    A block's corner lies anywhere from ``1 - side`` to the last patch, so each patch is covered
    with the same probability, corners included.

    Args:
        grid: patches along time and mel.
        sides_time, sides_mel: (B, 1) int64, size of a clip's blocks.
        num_blocks: K.
        generator: source of the draw.

    Returns:
        (B, T', F') int16, or int32 where K wants it.
    """
    in_time = _covered(grid[0], sides_time, num_blocks, generator)
    in_mel = _covered(grid[1], sides_mel, num_blocks, generator)
    # Blocks are numbered down from K, so that the first is a maximum: in small integers, many fold
    # faster than the first of several ones is found.
    dtype = torch.int16 if num_blocks < 2**15 else torch.int32
    rank = torch.arange(num_blocks, 0, -1, dtype=dtype, device=in_time.device)
    ranked = (in_time * rank[:, None]).unsqueeze(3) * in_mel.unsqueeze(2)  # (B, K, T', F')
    return num_blocks - ranked.amax(dim=1)


def _covered(
    size: int, sides: Tensor, num_blocks: int, generator: torch.Generator | None
) -> Tensor:
    """(B, K, size) bool: which places along one axis each block covers."""
    draw = torch.rand(len(sides), num_blocks, generator=generator, device=sides.device)
    corners = (draw * (size + sides - 1)).long() + 1 - sides  # (B, K)
    offset = torch.arange(size, device=sides.device) - corners.unsqueeze(2)
    return (offset >= 0) & (offset < sides.unsqueeze(2))


def _blocks_needed(share: float, grid: Grid, side: tuple[int, int]) -> int:
    """K so that K blocks of ``side`` cover more than ``share`` of the patches."""
    chance = 1.0
    for size, length in zip(grid, side, strict=True):
        chance *= min(1.0, length / (size + length - 1))
    share = min(share, 1 - 1 / (grid[0] * grid[1] + 1))
    return 4 + math.ceil(-math.log(1 - share) / chance * _COVER_MARGIN)


def pad_mask_ids(masks: Sequence[MaskIds]) -> MaskIds:
    """Stack the masks of single clips; rows of clips with fewer patches end in -1."""
    visible = [mask.visible_ids[0] for mask in masks]
    masked = [mask.masked_ids[0] for mask in masks]
    padded = len({(len(v), len(m)) for v, m in zip(visible, masked, strict=True)}) > 1

    def stack(rows: list[Tensor]) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)

    return MaskIds(stack(visible), stack(masked), padded)


def check_mask(mask_type: str, ratio: float, patches_per_column: int) -> None:
    """Refuse a strategy that does not exist or cannot work, before any data is read.

    Raises:
        ValueError: with the value and what would be right.
    """
    if mask_type not in MASK_TYPES:
        raise ValueError(
            f"mask_type {mask_type!r} is not known; it is one of {', '.join(MASK_TYPES)}"
        )
    if mask_type == "retain_spans":
        if patches_per_column != 1:
            raise ValueError(
                "mask_type retain_spans needs frame tokens (ast_kernel_size_chan=128); here "
                f"{patches_per_column} patches lie above one another"
            )
        if not 0 < ratio < 10:
            raise ValueError(
                f"random_mask_prob {ratio} is no span density; with retain_spans it lies between "
                "0 and 10 (1.45 hides 76.5 % of the tokens, 0.74 hides 52.3 %)"
            )
    elif not 0 < ratio < 1:
        raise ValueError(
            f"random_mask_prob {ratio} hides all or nothing; with {mask_type} it is the fraction "
            "hidden and lies between 0 and 1 (0.75 is usual)"
        )
