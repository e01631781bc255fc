"""The fairseq dataset for pretraining: manifest rows to batches of audio and masks."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from mae_ast.core.frontend.augment import roll_and_scale
from mae_ast.core.frontend.collate import Batch, Clip, Collater, clip_generator
from mae_ast.core.io.manifest import Manifest
from mae_ast.data.audio_clips import AudioClips
from mae_ast.data.bad_files import BadFile, FilesRead

_FOR_AUGMENTATION = 2  # what a generator is for, beside those of a Clip


class PretrainingDataset(AudioClips):
    """Clips of one split, cropped or padded to batches, with masks.

    Args:
        manifest: its files.
        collater: makes batches of clips.
        seed: of crops, masks and the order.
        shuffle: order and epochs as in training; ``False``: as in validation, always alike.
        roll_mag: in training, :func:`mae_ast.core.frontend.augment.roll_and_scale` each clip.
        limits: as of :class:`AudioClips`.

    Raises:
        ManifestError: a clip is shorter than one patch, or none is left.
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
        one_patch = collater.config.patch_shape.min_samples
        super().__init__(manifest, one_patch, seed, shuffle, collater.random_crop, **limits)
        self.collate = collater
        self.roll_mag = roll_mag and shuffle

    def __getitem__(self, index: int) -> Clip | BadFile:
        """Decode a clip's part."""
        clip = Clip.of(int(self.rows[index]), torch.empty(0), self.seed, self.epoch)
        samples = self.read_part(index, clip.generator)
        if isinstance(samples, BadFile):
            return samples
        if self.roll_mag:
            generator = clip_generator(self.seed, self.epoch, clip.id, _FOR_AUGMENTATION)
            samples = roll_and_scale(samples, generator)
        return dataclasses.replace(clip, samples=samples)

    def collater(self, samples: Sequence[Clip | BadFile]) -> dict[str, Any]:
        """Collate clips to fairseq's batch; without any usable clip, one of zero weight.

        ``files`` (:class:`FilesRead`) lists the files that were read for it.
        """
        clips = [clip for clip in samples if isinstance(clip, Clip)]
        bad = [file for file in samples if isinstance(file, BadFile)]
        files = FilesRead(self.split, [clip.id for clip in clips], bad)
        return {**to_sample(self.collate(clips)), "files": files}


def to_sample(batch: Batch) -> dict[str, Any]:
    """A batch as fairseq moves it about.

    The trainer makes every float tensor half precision under ``common.fp16``; log-mel frames
    therefore travel as the integers that have their bits (:func:`net_input` turns them back).
    """
    source = batch.source
    return {
        "id": batch.ids,
        "nsentences": len(batch.ids),
        "num_samples": batch.num_samples,
        "num_visible": batch.num_visible,
        "num_masked": batch.num_masked,
        "net_input": {
            "source": source.view(torch.int32) if source.dtype == torch.float32 else source,
            "lengths": batch.lengths,
            "visible_ids": batch.mask.visible_ids,
            "masked_ids": batch.mask.masked_ids,
            "padded": batch.mask.padded,
        },
    }


def net_input(sample: dict[str, Any]) -> dict[str, Any]:
    """The model's arguments, log-mel frames as float32 again."""
    arguments = dict(sample["net_input"])
    if arguments["source"].dtype == torch.int32:
        arguments["source"] = arguments["source"].view(torch.float32)
    return arguments
