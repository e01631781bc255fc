"""fairseq dataset for pretraining: clips of a manifest, batches of audio and masks.

Batches hold clips of similar lengths, cropped or padded to one length; or, if the data set is
packed, clips of any lengths side by side in a row of ``dataset.max_tokens`` samples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
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
from mae_ast.core.frontend.collate_rows import RowCollater
from mae_ast.core.frontend.fbank import FRAME_LENGTH, FRAME_SHIFT
from mae_ast.core.frontend.masking import masked_fraction
from mae_ast.core.frontend.rows import RowShape
from mae_ast.core.io.manifest import Manifest
from mae_ast.data.audio_clips import AudioClips
from mae_ast.data.bad_files import BadFile, FilesRead
from mae_ast.data.pack_rows import pack_rows

_FOR_ROWS = 2  # purpose of a generator, besides those of a mixture


class PretrainingDataset(AudioClips):
    """Clips of one split, cropped or padded to batches, with masks.

    Args:
        manifest: audio files of the split.
        collater: makes batches of clips.
        seed: seed of crops, masks and order.
        shuffle: new order, crops and masks in each epoch, as in training; ``False``: always the
            same ones, as in validation.
        roll_mag: apply :func:`mae_ast.core.frontend.augment.roll_and_scale` to training clips.
        packed: batches are rows of clips, in random order.
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
        packed: bool = False,
        **limits: Any,
    ) -> None:
        patch_samples = collater.config.patch_shape.min_samples
        super().__init__(manifest, patch_samples, seed, shuffle, collater.random_crop, **limits)
        self.collate = collater
        self.roll_mag = roll_mag and shuffle
        self.packed = packed
        self._collate_row: RowCollater | None = None

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

    def batch_by_size(
        self,
        indices: np.ndarray,
        max_tokens: int | None = None,
        max_sentences: int | None = None,
        required_batch_size_multiple: int = 1,
    ) -> list[Any]:
        """Make batches as the base class, or rows of ``max_tokens`` samples.

        Raises:
            ValueError: the data set is packed, and ``max_tokens`` is ``None``.
        """
        if not self.packed:
            batches: list[Any] = super().batch_by_size(
                indices, max_tokens, max_sentences, required_batch_size_multiple
            )
            return batches
        self.count_distinct(indices)
        if self.shuffle:
            key = self.seed, self.epoch, _FOR_ROWS
            indices = np.random.default_rng(key).permutation(indices)
        shape = self._row_shape(max_tokens, max_sentences)
        self._collate_row = RowCollater(self.collate, shape)
        groups = [indices]
        if self.shard_order is not None:
            groups = self.shard_order.groups(indices, self.epoch)
        rows: list[np.ndarray] = []
        for group in groups:
            steps = self._steps(self.num_tokens_vec(group)).tolist()
            rows += [group[row] for row in pack_rows(steps, shape.num_steps, shape.num_clips)]
        return rows

    def _row_shape(self, max_tokens: int | None, max_sentences: int | None) -> RowShape:
        if max_tokens is None:
            raise ValueError(
                "task.batching=packed needs dataset.max_tokens, the samples at 16 kHz of a row"
            )
        config = self.collate.config
        num_steps = max_tokens // FRAME_SHIFT // config.patch_shape.time
        # Rows of many short clips are rare; they hold at most twice the usual number.
        usual = num_steps / self._steps(self.sizes).mean()
        num_clips = max(1, min(round(2 * usual), max_sentences or num_steps))
        ratio = masked_fraction(self.collate.mask_type, config.random_mask_prob)
        return RowShape(num_steps, num_clips, config.patch_shape, ratio)

    def _steps(self, sizes: np.ndarray) -> np.ndarray:
        """Return the time steps of clips of ``sizes`` samples at 16 kHz."""
        frames = 1 + (sizes - FRAME_LENGTH) // FRAME_SHIFT
        steps: np.ndarray = frames // self.collate.config.patch_shape.time
        return steps

    def collater(self, samples: Sequence[Clip | BadFile]) -> dict[str, Any]:
        """Collate clips to a fairseq batch; without a usable clip it has zero weight.

        ``files`` (:class:`FilesRead`) lists the files that were read for the batch.
        """
        clips = [clip for clip in samples if isinstance(clip, Clip)]
        bad = [file for file in samples if isinstance(file, BadFile)]
        files = FilesRead(self.split, [clip.id for clip in clips if clip.repeat == 0], bad)
        collate = self.collate if self._collate_row is None else self._collate_row
        return {**to_sample(collate(clips)), "files": files}


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
