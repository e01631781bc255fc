"""Collate clips of any lengths into a row: side by side, nothing padded, nothing cropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from mae_ast.core.frontend.collate import Batch, Clip, Collater
from mae_ast.core.frontend.fbank import (
    FRAME_SHIFT,
    NUM_MEL_BINS,
    fbank,
    num_frames,
    num_samples_of_frames,
)
from mae_ast.core.frontend.masking import MaskIds
from mae_ast.core.frontend.rows import LOST_FRAMES, RowClips, RowShape


@dataclass(frozen=True)
class RowCollater:
    """Collate function that puts clips side by side and draws their masks.

    A clip has the patches and the mask that it would have alone; frames at its end that do not fill
    a patch are dropped.

    Args:
        collater: draws the masks, and says where the filterbank is computed.
        shape: shape of all rows.
    """

    collater: Collater
    shape: RowShape

    def __call__(self, clips: Sequence[Clip]) -> Batch:
        """Collate clips; an empty sequence gives a row without clips, whose losses are 0.

        Raises:
            ValueError: a clip is shorter than one patch, or the clips do not fit a row.
        """
        self.collater.check_lengths(clips)
        shape, lengths = self.shape, [len(clip.samples) for clip in clips]
        steps = [shape.patches.grid(num_frames(length))[0] for length in lengths]
        if sum(steps) > shape.num_steps or len(clips) > shape.num_clips:
            raise ValueError(
                f"{len(clips)} clips of {sum(steps)} time steps do not fit a row of "
                f"{shape.num_clips} clips and {shape.num_steps} time steps"
            )
        masks = self.collater.draw_masks(clips, lengths)
        counts = [count * shape.patches.per_column for count in steps]
        starts = [0, *accumulate(counts)][: len(counts)]
        visible = [mask.visible_ids[0] + n for mask, n in zip(masks, starts, strict=True)]
        masked = [mask.masked_ids[0] + n for mask, n in zip(masks, starts, strict=True)]
        row_clips = RowClips(
            self._ends(counts, shape.num_patches),
            self._ends([len(ids) for ids in visible], shape.num_visible),
            self._ends([len(ids) for ids in masked], shape.num_masked),
        )
        mask = MaskIds(
            _row(visible, shape.num_visible), _row(masked, shape.num_masked), True, row_clips
        )
        source = self._log_mel if self.collater.compute_fbank else self._wave
        return Batch(
            torch.tensor([clip.id for clip in clips], dtype=torch.int64),
            source(clips, steps),
            torch.tensor([sum(steps) * shape.patches.time]),
            mask,
            num_visible=sum(map(len, visible)),
            num_masked=sum(map(len, masked)),
            num_samples=sum(lengths),
        )

    def _ends(self, counts: Sequence[int], total: int) -> Tensor:
        """Return the ends of clips of ``counts`` tokens, of unused ones, and of that of nothing."""
        ends = list(accumulate(counts, initial=0))
        ends += ends[-1:] * (self.shape.num_ends - 1 - len(ends))
        return torch.tensor([*ends, total])

    def _wave(self, clips: Sequence[Clip], steps: Sequence[int]) -> Tensor:
        """Return the waveforms (1, L) int16, placed as ``frames_of_row`` expects them."""
        row = torch.zeros(1, self.shape.num_samples, dtype=torch.int16)
        start = 0
        for clip, count in zip(clips, steps, strict=True):
            frames = count * self.shape.patches.time
            part = clip.samples[: num_samples_of_frames(frames)]
            row[0, start : start + len(part)] = part
            start += (frames + LOST_FRAMES) * FRAME_SHIFT
        return row

    def _log_mel(self, clips: Sequence[Clip], steps: Sequence[int]) -> Tensor:
        """Return log-mel (1, T, 128) float32; 0 after the last clip."""
        row = torch.zeros(1, self.shape.num_frames, NUM_MEL_BINS)
        start = 0
        for clip, count in zip(clips, steps, strict=True):
            end = start + count * self.shape.patches.time
            samples = clip.samples[: num_samples_of_frames(end - start)]
            row[:, start:end] = fbank(samples[None], self.collater.config.window_type)
            start = end
        return row


def _row(ids: Sequence[Tensor], length: int) -> Tensor:
    """Return ids of clips side by side, (1, ``length``) int64, padded with -1."""
    row = torch.full((1, length), -1)
    own = torch.cat([*ids, torch.empty(0, dtype=torch.int64)])
    row[0, : len(own)] = own
    return row
