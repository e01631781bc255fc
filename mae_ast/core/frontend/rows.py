"""Clips of any lengths side by side in one row: a batch of one, in which nothing is padded.

A row has room for a fixed number of patches and of clips, so that all rows of a run have the same
shape. Its last clip is one of nothing, which fills the rest:

    clip 0 | clip 1 | ... | unused clips, of no patches | clip of nothing

All positions are computed on the device of the row, without the host, from the ends of the clips.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor

from mae_ast.core.frontend.fbank import FRAME_LENGTH, FRAME_SHIFT, num_samples_of_frames
from mae_ast.core.frontend.patches import PatchShape

# Frames that overlap the end of a clip and what follows; they belong to no clip.
LOST_FRAMES = math.ceil((FRAME_LENGTH - FRAME_SHIFT) / FRAME_SHIFT)


class RowClips(NamedTuple):
    """Ends of the clips of a row, each (C + 1,) int64: 0, then the end of each clip.

    A tuple of tensors, so that trainers move it to a device like any other part of a batch.

    Args:
        ends: of the patches.
        visible_ends: of the visible patches.
        masked_ends: of the masked patches.
    """

    ends: Tensor
    visible_ends: Tensor
    masked_ends: Tensor

    def to(self, device: torch.device | str) -> RowClips:
        """Return the ends on a device."""
        return RowClips(*(ends.to(device) for ends in self))


class TokenEnds(NamedTuple):
    """Ends of each clip's tokens in a row, within which attention stays: (C + 1,) int64.

    Args:
        tokens: of the tokens that attend to each other.
        selected: of the tokens that the last layer returns; ``None``: it returns all.
    """

    tokens: Tensor
    selected: Tensor | None = None


@dataclass(frozen=True)
class RowShape:
    """Shape of all rows of a run.

    Args:
        num_steps: time steps of a row, without that of the clip of nothing.
        num_clips: maximum number of clips of a row.
        patches: size of the patches; they do not overlap.
        ratio: fraction of the patches of a clip that is masked.
    """

    num_steps: int
    num_clips: int
    patches: PatchShape
    ratio: float

    @property
    def num_ends(self) -> int:
        """C + 1: one end for each clip, for the clip of nothing, and the 0 in front."""
        return self.num_clips + 2

    @property
    def num_patches(self) -> int:
        """N, the number of patches of a row."""
        return self.num_frames // self.patches.time * self.patches.per_column

    @property
    def num_visible(self) -> int:
        """V, the maximum number of visible patches."""
        return self._with_rounding(1 - self.ratio)

    @property
    def num_masked(self) -> int:
        """M, the maximum number of masked patches."""
        return self._with_rounding(self.ratio)

    @property
    def num_frames(self) -> int:
        """T, the number of frames of a row.

        The clip of nothing has at least one time step, so that padding has a key to attend to.
        """
        return (self.num_steps + 1) * self.patches.time

    @property
    def num_samples(self) -> int:
        """L, the number of samples of a row of waveforms, see :func:`frames_of_row`."""
        return num_samples_of_frames(self.num_frames + LOST_FRAMES * (self.num_ends - 1))

    def _with_rounding(self, ratio: float) -> int:
        """Return the maximum number of patches, if that of each clip is a rounded fraction.

        Nothing is rounded if the fraction of each time step is a whole number of patches.
        """
        is_whole = (Fraction(ratio) * self.patches.per_column).denominator == 1
        num_rounded = 0 if is_whole else self.num_clips
        return min(self.num_patches, math.ceil(ratio * self.num_patches) + num_rounded)


def clips_of(places: Tensor, ends: Tensor) -> Tensor:
    """Return the clip (S,) int64 that each of the places (S,) of a row belongs to."""
    return torch.searchsorted(ends[1:].contiguous(), places, right=True)


def places_in_clips(ends: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """Return for each place of a row its index within its clip, and the length of that clip.

    Args:
        ends: (C + 1,) int64, ends of the clips.
        num: number of places of the row.

    Returns:
        Two tensors (num,) int64.
    """
    places = torch.arange(num, device=ends.device)
    of = clips_of(places, ends)
    return places - ends[of], ends.diff()[of]


def frames_of_row(clips: RowClips, shape: PatchShape, num_frames: int) -> Tensor:
    """Return the frames of a row of waveforms that belong to its clips, (T,) int64.

    In a row of waveforms, :data:`LOST_FRAMES` frames lie between the last frame of a clip that is
    part of a patch and the first one of the next clip.

    Args:
        clips: ends of the clips.
        shape: size of the patches.
        num_frames: number of frames of the row of waveforms.
    """
    num_clips = len(clips.ends) - 1
    places = torch.arange(num_frames - LOST_FRAMES * num_clips, device=clips.ends.device)
    of = clips_of(places, clips.ends // shape.per_column * shape.time)
    return places + LOST_FRAMES * of


class PrefixedRow:
    """Places of tokens in a row where prefix tokens precede the tokens of each clip.

    Args:
        ends: (C + 1,) int64, ends of the clips' tokens.
        num_tokens: S, tokens of the row without prefix tokens.
        num_prefix: K, prefix tokens of each clip.
    """

    def __init__(self, ends: Tensor, num_tokens: int, num_prefix: int) -> None:
        index = torch.arange(len(ends), device=ends.device)
        self.ends = ends + num_prefix * index
        tokens = torch.arange(num_tokens, device=ends.device)
        self.tokens = tokens + num_prefix * (clips_of(tokens, ends) + 1)
        first = self.ends[:-1, None]
        self.prefix = (first + torch.arange(num_prefix, device=ends.device)).flatten()

    def join(self, prefix: Tensor, tokens: Tensor) -> Tensor:
        """Insert prefix tokens (1, C K, D) into a row (1, S, D): (1, C K + S, D)."""
        places = torch.cat((self.prefix, self.tokens))
        order = torch.empty_like(places).scatter(
            0, places, torch.arange(len(places), device=places.device)
        )
        return torch.cat((prefix, tokens), dim=1)[:, order]

    def split(self, row: Tensor) -> tuple[Tensor, Tensor]:
        """Undo :meth:`join`: (1, C K + S, D) -> (1, C K, D) and (1, S, D)."""
        return row[:, self.prefix], row[:, self.tokens]
