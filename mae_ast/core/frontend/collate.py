"""Collate clips into a batch: crop or pad, optionally compute the filterbank, draw masks.

All randomness comes from generators keyed by (seed, epoch, clip), so that the crop and the mask of
a clip do not depend on the number of workers or ranks, or on whether a run was interrupted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from mae_ast.core.frontend.fbank import fbank, num_frames, num_samples_of_frames
from mae_ast.core.frontend.masking import MaskIds, mask_strategy, pad_mask_ids
from mae_ast.core.frontend.patches import PatchShape

# Purposes of a clip's generators. If it is drawn again in an epoch, NUM_PURPOSES is added.
_FOR_CROPS, _FOR_MASK, FOR_AUGMENTATION, NUM_PURPOSES = range(4)


def clip_generator(seed: int, epoch: int, clip: int, purpose: int = 0) -> torch.Generator:
    """Return a generator keyed by (seed, epoch, clip): same key, same draws, in any process."""
    key = np.random.SeedSequence((seed, epoch, clip, purpose)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(key >> np.uint64(1)))


def draw_start(room: int, generator: torch.Generator) -> int:
    """Draw the start of a crop, uniform from 0 to ``room``."""
    return int(torch.randint(room + 1, (), generator=generator)) if room > 0 else 0


@dataclass(frozen=True)
class Clip:
    """One decoded clip.

    Args:
        id: row in the manifest.
        samples: (L,) int16 at 16 kHz.
        generator: generator of the clip's crop.
        mask_generator: generator of the clip's mask.
        repeat: number of times the clip was drawn before in this epoch.
    """

    id: int
    samples: Tensor
    generator: torch.Generator
    mask_generator: torch.Generator
    repeat: int = 0

    @classmethod
    def of(
        cls,
        id: int,  # noqa: A002
        samples: Tensor,
        seed: int,
        epoch: int,
        repeat: int = 0,
    ) -> Clip:
        """Return a clip with its generators, which differ for each repeat."""
        earlier = NUM_PURPOSES * repeat
        return cls(
            id,
            samples,
            clip_generator(seed, epoch, id, _FOR_CROPS + earlier),
            clip_generator(seed, epoch, id, _FOR_MASK + earlier),
            repeat,
        )


@dataclass(frozen=True)
class Batch:
    """Inputs of one pretraining step.

    Args:
        ids: (B,) int64, rows in the manifest.
        source: (B, L) int16 waveforms, or (B, T, 128) float32 log-mel.
        lengths: (B,) int64, valid samples or frames of each clip, of a row its valid frames;
            ``None``: no clip is padded.
        mask: visible and masked patches.
        num_visible, num_masked: number of such patches in the batch.
        num_samples: number of valid samples in the batch.
    """

    ids: Tensor
    source: Tensor
    lengths: Tensor | None
    mask: MaskIds
    num_visible: int
    num_masked: int
    num_samples: int


class InputConfig(Protocol):
    """Fields of a model's configuration that a batch depends on (see its help texts)."""

    random_mask_prob: float
    mask_length: int

    @property
    def patch_shape(self) -> PatchShape:
        """Size and stride of the patches."""

    @property
    def window_type(self) -> str:
        """Window of the filterbank, "povey" or "hanning"."""

    @property
    def input_frames(self) -> int | None:
        """Frames that the model crops or pads clips to; ``None``: clips of any length."""


@dataclass(frozen=True)
class Collater:
    """Collate function that crops or pads clips and draws their masks.

    Args:
        config: the model's configuration: patches, mask ratio, filterbank, maximum length.
        mask_type: name of a masking strategy, a key of
            :data:`~mae_ast.core.frontend.masking.MASK_TYPES`.
        pad: pad clips to the longest one instead of cropping them to the shortest. In both cases
            clips are cropped to the model's ``input_frames``.
        random_crop: crop at a random position instead of at the beginning.
        compute_fbank: compute the filterbank here instead of in the model.
    """

    config: InputConfig
    mask_type: str
    pad: bool = False
    random_crop: bool = True
    compute_fbank: bool = False

    def __call__(self, clips: Sequence[Clip]) -> Batch:
        """Collate clips; an empty sequence gives an empty batch, whose losses are 0.

        Raises:
            ValueError: a clip is shorter than one patch.
        """
        if not clips:
            return self._empty_batch()
        self.check_lengths(clips)
        lengths = [len(clip.samples) for clip in clips]
        length = max(lengths) if self.pad else min(lengths)
        if self.config.input_frames is not None:
            length = min(length, num_samples_of_frames(self.config.input_frames))
        waveforms = torch.zeros(len(clips), length, dtype=torch.int16)
        for row, clip in zip(waveforms, clips, strict=True):
            room = len(clip.samples) - length
            start = draw_start(room, clip.generator) if self.random_crop else 0
            part = clip.samples[start : start + length]
            row[: len(part)] = part
        lengths = [min(n, length) for n in lengths]
        mask = pad_mask_ids(self.draw_masks(clips, lengths))
        ids = torch.tensor([clip.id for clip in clips])
        return self._batch(ids, waveforms, lengths, mask)

    def check_lengths(self, clips: Sequence[Clip]) -> None:
        """Check that each clip has at least one patch.

        Raises:
            ValueError: a clip is shorter.
        """
        shortest = min((len(clip.samples) for clip in clips), default=None)
        least = self.config.patch_shape.min_samples
        if shortest is not None and shortest < least:
            raise ValueError(
                f"a clip of {shortest} samples at 16 kHz is shorter than one patch ({least})"
            )

    def draw_masks(self, clips: Sequence[Clip], lengths: Sequence[int]) -> list[MaskIds]:
        """Draw the mask of each clip, of ``lengths`` samples."""
        strategy = mask_strategy(self.mask_type, self.config.mask_length)
        shape, ratio = self.config.patch_shape, self.config.random_mask_prob
        # Masks have generators of their own, so that they do not depend on whether the clip had to
        # be cropped, which draws from the other generator.
        generators = [clip.mask_generator for clip in clips]
        if self.mask_type == "random_mask_batched":
            state = generators[0].get_state()
            generators = [torch.Generator().set_state(state) for _ in clips]
        return [
            strategy(1, shape.grid(num_frames(length)), ratio, generator=generator)
            for length, generator in zip(lengths, generators, strict=True)
        ]

    def _batch(self, ids: Tensor, waveforms: Tensor, lengths: list[int], mask: MaskIds) -> Batch:
        is_padded = any(length < waveforms.shape[1] for length in lengths)
        source = waveforms
        valid = lengths
        if self.compute_fbank:
            source = fbank(waveforms, self.config.window_type)
            valid = [num_frames(length) for length in lengths]
        return Batch(
            ids,
            source,
            torch.tensor(valid) if is_padded else None,
            mask,
            num_visible=int((mask.visible_ids >= 0).sum()) if len(ids) else 0,
            num_masked=int((mask.masked_ids >= 0).sum()),
            num_samples=sum(lengths),
        )

    def _empty_batch(self) -> Batch:
        """Return a silent clip without valid frames or masked patches.

        It lets a worker whose clips are all unreadable, or a rank that has run out of clips, take
        part in the step.
        """
        shape = self.config.patch_shape
        visible = torch.arange(shape.per_column).unsqueeze(0)
        mask = MaskIds(visible, torch.full((1, 1), -1), padded=True)
        silence = torch.zeros(1, shape.min_samples, dtype=torch.int16)
        return self._batch(torch.empty(0, dtype=torch.int64), silence, [0], mask)
