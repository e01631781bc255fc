"""fairseq dataset for classification: labelled clips, batches of waveforms and targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mae_ast.core.frontend.augment import Augmentation, StructuredDrop, mix
from mae_ast.core.frontend.collate import clip_generator
from mae_ast.core.frontend.fbank import num_frames
from mae_ast.core.io.labels import ClipLabels, LabelError
from mae_ast.core.io.manifest import Manifest
from mae_ast.data.audio_clips import AudioClips
from mae_ast.data.bad_files import BadFile, FilesRead

# Purposes of a clip's generators. If it is drawn again in an epoch, _NUM_PURPOSES is added.
_FOR_CROPS, _FOR_MIXING, _FOR_AUGMENTATION, _FOR_MASKING, _NUM_PURPOSES = range(5)


@dataclass(frozen=True)
class LabelledClip:
    """Item of the dataset: an augmented clip and its target.

    Args:
        id: row of the clip in the manifest.
        samples: (L,) int16 at 16 kHz.
        target: (C,) float32; mixup makes it a weighted mean of two clips' targets.
        hidden: (2, 2) int64, bands masked by SpecAugment.
        visible_ids: (V,) int64, patches visible to the encoder; ``None``: all.
        repeat: number of times the clip was drawn before in this epoch.
    """

    id: int
    samples: Tensor
    target: Tensor
    hidden: Tensor
    visible_ids: Tensor | None = None
    repeat: int = 0


class ClassificationDataset(AudioClips):
    """Labelled clips of one split.

    Args:
        manifest: audio files of the split.
        labels: labels of all rows of the manifest.
        patch_samples: samples at 16 kHz of one patch, the shortest clip that the model accepts.
        seed: seed of crops, augmentation and order.
        shuffle: shuffle and augment, as in training; ``False``: fixed order, unchanged clips.
        augmentation: augmentation of training clips; ``None``: none.
        balanced: in training, draw clips of rare classes more often (:func:`sampling_weights`).
        drop: structured mask of the patches in training; ``None``: all patches are visible.
        random_crop, limits: see :class:`AudioClips`.

    Raises:
        ManifestError: a clip is shorter than one patch, or all clips are skipped.
    """

    def __init__(
        self,
        manifest: Manifest,
        labels: ClipLabels,
        patch_samples: int,
        seed: int,
        shuffle: bool,
        augmentation: Augmentation | None = None,
        balanced: bool = False,
        random_crop: bool = True,
        drop: StructuredDrop | None = None,
        **limits: Any,
    ) -> None:
        super().__init__(manifest, patch_samples, seed, shuffle, random_crop, **limits)
        self.labels = labels
        self.patch_samples = patch_samples
        self.augmentation = augmentation or Augmentation()
        self.balanced = balanced
        self.drop = drop if shuffle else None
        self._weights = sampling_weights(labels, self.rows) if balanced and shuffle else None

    def __getitem__(self, index: int) -> LabelledClip | BadFile:
        """Decode and augment a clip.

        Args:
            index: index of the clip, plus ``len(self)`` for each earlier draw in this epoch.
        """
        repeat, position = divmod(int(index), len(self))
        row = int(self.rows[position])

        def generator(purpose: int) -> torch.Generator:
            return clip_generator(self.seed, self.epoch, row, purpose + _NUM_PURPOSES * repeat)

        samples = self.read_part(position, generator(_FOR_CROPS))
        if isinstance(samples, BadFile):
            return replace(samples, repeat=repeat)
        target = torch.from_numpy(self.labels.multi_hot([row])[0])
        hidden, visible_ids = torch.zeros(2, 2, dtype=torch.int64), None
        if self.shuffle:
            samples, target = self._mix(position, samples, target, generator(_FOR_MIXING))
            samples = self.augmentation.augment(samples, generator(_FOR_AUGMENTATION))
            frames = num_frames(len(samples))
            for_masking = generator(_FOR_MASKING)
            hidden = self.augmentation.draw_hidden(frames, for_masking)
            if self.drop is not None:
                visible_ids = self.drop.draw_visible(frames, for_masking)
        return LabelledClip(row, samples, target, hidden, visible_ids, repeat)

    def collater(self, samples: Sequence[LabelledClip | BadFile]) -> dict[str, Any]:
        """Collate clips to a fairseq batch, zero-padded to the longest.

        Without a usable clip the batch holds one silent clip and counts as empty. ``files``
        (:class:`FilesRead`) lists the files that were read for the batch.

        Targets are reinterpreted as int32, because the trainer casts every float tensor to half
        precision under ``common.fp16``.
        """
        clips = [clip for clip in samples if isinstance(clip, LabelledClip)]
        bad = [file for file in samples if isinstance(file, BadFile)]
        lengths = [len(clip.samples) for clip in clips] or [self.patch_samples]
        source = torch.zeros(len(lengths), max(lengths), dtype=torch.int16)
        for row, clip in zip(source, clips, strict=False):
            row[: len(clip.samples)] = clip.samples
        targets = [clip.target for clip in clips] or [torch.empty(0, self.labels.num_classes)]
        masks = self.shuffle and (self.augmentation.freq_mask or self.augmentation.time_mask)
        visible = [clip.visible_ids for clip in clips if clip.visible_ids is not None]
        return {
            "id": torch.tensor([clip.id for clip in clips], dtype=torch.int64),
            "nsentences": len(clips),
            "num_samples": sum(lengths) if clips else 0,
            "files": FilesRead(self.split, [clip.id for clip in clips if clip.repeat == 0], bad),
            "target": (torch.stack(targets) if clips else targets[0]).view(torch.int32),
            "net_input": {
                "source": source,
                "lengths": torch.tensor(lengths) if min(lengths) < max(lengths) else None,
                "hidden": torch.stack([clip.hidden for clip in clips]) if masks and clips else None,
                "visible_ids": pad_sequence(visible, True, -1) if visible else None,
            },
        }

    def ordered_indices(self) -> np.ndarray:
        """Return indices in random order in training, drawn by their weights if balanced.

        Clips are not grouped by length, since length often depends on the class. fairseq calls
        this with NumPy's global generator seeded by (seed, epoch).
        """
        order: np.ndarray
        if not self.shuffle:
            order = super().ordered_indices()
            return order
        draws = np.random.default_rng(np.random.randint(2**31))
        if self._weights is None:
            order = draws.permutation(len(self))
            return order
        drawn = draws.choice(len(self), len(self), p=self._weights)
        order = drawn + len(self) * _num_earlier(drawn)
        return order

    def filter_indices_by_size(
        self, indices: np.ndarray, max_sizes: int
    ) -> tuple[np.ndarray, list[int]]:
        """Split indices by size as fairseq does; accepts indices of repeated draws."""
        fits = self.num_tokens_vec(indices) <= max_sizes
        return indices[fits], indices[~fits].tolist()

    def _mix(
        self, position: int, samples: Tensor, target: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Apply mixup with another clip of the split, if drawn and if that clip can be read."""
        drawn = self.augmentation.draw_mixing(len(self), generator)
        if drawn is None:
            return samples, target
        partner, ratio = drawn
        if self.shard_order is not None:  # another shard may not be in the cache
            partner = self.shard_order.companion(position, partner)
        other = self.read_part(partner, generator)
        if isinstance(other, BadFile):  # counted when the clip itself is drawn
            return samples, target
        other_target = torch.from_numpy(self.labels.multi_hot([int(self.rows[partner])])[0])
        return mix(samples, other, ratio), ratio * target + (1 - ratio) * other_target


def sampling_weights(labels: ClipLabels, rows: np.ndarray) -> np.ndarray:
    """Return the sampling probability of each of ``rows`` (R,).

    It is proportional to the sum over the clip's classes of 1 / number of clips with that class,
    as in AST (Gong et al. 2021, arXiv 2104.01778).
    """
    rarity = 1 / np.maximum(labels.counts, 1)
    weights = np.array([rarity[labels[row]].sum() for row in rows.tolist()])
    probabilities: np.ndarray = weights / weights.sum()
    return probabilities


def check_one_label(labels: ClipLabels, path: Path) -> None:
    """Check that each clip has exactly one label.

    Raises:
        LabelError: a clip has several labels or none; the message names the line.
    """
    for row in range(len(labels)):
        if len(labels[row]) != 1:
            raise LabelError(
                f"{path}:{row + 1}: {len(labels[row])} labels; task.multi_label=false requires "
                "exactly one per clip (set it to true if clips have several)"
            )


def _num_earlier(drawn: np.ndarray) -> np.ndarray:
    """Return how many earlier elements of ``drawn`` (K,) equal each element."""
    order = np.argsort(drawn, kind="stable")
    in_order = drawn[order]
    is_new = np.r_[True, in_order[1:] != in_order[:-1]]
    position = np.arange(len(drawn))
    num_earlier = np.empty(len(drawn), dtype=np.int64)
    num_earlier[order] = position - np.maximum.accumulate(np.where(is_new, position, 0))
    return num_earlier
