"""fairseq dataset for pretraining: clips of a manifest, batches of audio and masks."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from mae_ast.core.frontend.augment import roll_and_scale
from mae_ast.core.frontend.collate import (
    FOR_AUGMENTATION,
    NUM_PURPOSES,
    Batch,
    Clip,
    Collater,
    clip_generator,
)
from mae_ast.core.io.manifest import Manifest
from mae_ast.data.audio_clips import AudioClips
from mae_ast.data.bad_files import BadFile, FilesRead


class PretrainingDataset(AudioClips):
    """Clips of one split, cropped or padded to batches, with masks.

    Args:
        manifest: audio files of the split.
        collater: makes batches of clips.
        seed: seed of crops, masks and order.
        shuffle: new order, crops and masks in each epoch, as in training; ``False``: always the
            same ones, as in validation.
        roll_mag: apply :func:`mae_ast.core.frontend.augment.roll_and_scale` to training clips.
        limits: see :class:`AudioClips`.

    Raises:
        ManifestError: a clip is shorter than one patch, or all clips are skipped.
    """

    def __init__(
        self,
        manifest: Manifest,
        collater: Collater,
        seed: int,
        shuffle: bool,
        roll_mag: bool = False,
        **limits: Any,
    ) -> None:
        patch_samples = collater.config.patch_shape.min_samples
        super().__init__(manifest, patch_samples, seed, shuffle, collater.random_crop, **limits)
        self.collate = collater
        self.roll_mag = roll_mag and shuffle

    def __getitem__(self, index: int) -> Clip | BadFile:
        """Decode and crop a clip.

        Args:
            index: index of the clip, plus ``len(self)`` for each earlier draw in this epoch.
        """
        repeat, position = divmod(int(index), len(self))
        clip = Clip.of(int(self.rows[position]), torch.empty(0), self.seed, self.epoch, repeat)
        samples = self.read_part(position, clip.generator)
        if isinstance(samples, BadFile):
            return dataclasses.replace(samples, repeat=repeat)
        if self.roll_mag:
            purpose = FOR_AUGMENTATION + NUM_PURPOSES * repeat
            generator = clip_generator(self.seed, self.epoch, clip.id, purpose)
            samples = roll_and_scale(samples, generator)
        return dataclasses.replace(clip, samples=samples)

    def collater(self, samples: Sequence[Clip | BadFile]) -> dict[str, Any]:
        """Collate clips to a fairseq batch; without a usable clip it has zero weight.

        ``files`` (:class:`FilesRead`) lists the files that were read for the batch.
        """
        clips = [clip for clip in samples if isinstance(clip, Clip)]
        bad = [file for file in samples if isinstance(file, BadFile)]
        files = FilesRead(self.split, [clip.id for clip in clips if clip.repeat == 0], bad)
        return {**to_sample(self.collate(clips)), "files": files}


def to_sample(batch: Batch) -> dict[str, Any]:
    """Convert a batch to the dictionary that fairseq expects."""
    return {
        "id": batch.ids,
        "nsentences": len(batch.ids),
        "num_samples": batch.num_samples,
        "num_visible": batch.num_visible,
        "num_masked": batch.num_masked,
        "net_input": {"source": batch.source, "lengths": batch.lengths, "mask": batch.mask},
    }
