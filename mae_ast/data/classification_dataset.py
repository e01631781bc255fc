"""The fairseq dataset for classification: labelled clips to batches of waveforms and targets."""

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

# What a generator is for; those of a clip's second and later turns in an epoch come after these.
_FOR_CROPS, _FOR_MIXING, _FOR_AUGMENTATION, _FOR_HIDING, _NUM_PURPOSES = range(5)


@dataclass(frozen=True)
class LabelledClip:
    """One clip as it goes into a batch.

    Args:
        id: its row in the manifest.
        samples: (L,) int16 at 16 kHz.
        target: (C,) float32; class ratios for a mixup clip.
        hidden: (2, 2) int64, bands masked by SpecAugment.
        visible_ids: (V,) int64, the patches that the encoder sees; ``None``: all.
        turn: how often the clip came up before in this epoch.
    """

    id: int
    samples: Tensor
    target: Tensor
    hidden: Tensor
    visible_ids: Tensor | None = None
    turn: int = 0


class ClassificationDataset(AudioClips):
    """Labelled clips of one split.

    Args:
        manifest: its files.
        labels: of all rows of the manifest.
        one_patch: samples at 16 kHz of the shortest clip that the model takes.
        seed: of crops, augmentation and the order.
        shuffle: vary clips and order as in training; ``False``: each clip as it is.
        augmentation: of training clips.
        balanced: in training, draw clips so that rare classes are heard more often.
        drop: patches that the encoder does not see in training; ``None``: it sees all.
        random_crop, limits: as of :class:`AudioClips`.

    Raises:
        ManifestError: a clip is shorter than one patch, or none is left.
    """

    def __init__(
        self,
        manifest: Manifest,
        labels: ClipLabels,
        one_patch: int,
        seed: int,
        shuffle: bool,
        augmentation: Augmentation | None = None,
        balanced: bool = False,
        random_crop: bool = True,
        drop: StructuredDrop | None = None,
        **limits: Any,
    ) -> None:
        super().__init__(manifest, one_patch, seed, shuffle, random_crop, **limits)
        self.labels = labels
        self.one_patch = one_patch
        self.augmentation = augmentation or Augmentation()
        self.balanced = balanced
        self.drop = drop if shuffle else None
        self._weights = sampling_weights(labels, self.rows) if balanced and shuffle else None

    def __getitem__(self, index: int) -> LabelledClip | BadFile:
        """Decode and augment a clip.

        Args:
            index: index of the clip, plus ``len(self)`` for each earlier turn in this epoch.
        """
        turn, place = divmod(int(index), len(self))
        row = int(self.rows[place])

        def generator(purpose: int) -> torch.Generator:
            return clip_generator(self.seed, self.epoch, row, purpose + _NUM_PURPOSES * turn)

        samples = self.read_part(place, generator(_FOR_CROPS))
        if isinstance(samples, BadFile):
            return replace(samples, turn=turn)
        target = torch.from_numpy(self.labels.multi_hot([row])[0])
        hidden, visible_ids = torch.zeros(2, 2, dtype=torch.int64), None
        if self.shuffle:
            samples, target = self._mixed(samples, target, generator(_FOR_MIXING))
            samples = self.augmentation.augment(samples, generator(_FOR_AUGMENTATION))
            frames = num_frames(len(samples))
            for_hiding = generator(_FOR_HIDING)
            hidden = self.augmentation.draw_hidden(frames, for_hiding)
            if self.drop is not None:
                visible_ids = self.drop.draw_visible(frames, for_hiding)
        return LabelledClip(row, samples, target, hidden, visible_ids, turn)

    def collater(self, samples: Sequence[LabelledClip | BadFile]) -> dict[str, Any]:
        """Pad clips to fairseq's batch; without any usable clip, one of zero weight.

        ``files`` (:class:`FilesRead`) lists the files that were read for it.

        The trainer makes every float tensor half precision under ``common.fp16``; targets
        therefore travel as the integers that have their bits.
        """
        clips = [clip for clip in samples if isinstance(clip, LabelledClip)]
        bad = [file for file in samples if isinstance(file, BadFile)]
        lengths = [len(clip.samples) for clip in clips] or [self.one_patch]
        source = torch.zeros(len(lengths), max(lengths), dtype=torch.int16)
        for row, clip in zip(source, clips, strict=False):
            row[: len(clip.samples)] = clip.samples
        targets = [clip.target for clip in clips] or [torch.empty(0, self.labels.num_classes)]
        hides = self.shuffle and (self.augmentation.freq_mask or self.augmentation.time_mask)
        visible = [clip.visible_ids for clip in clips if clip.visible_ids is not None]
        return {
            "id": torch.tensor([clip.id for clip in clips], dtype=torch.int64),
            "nsentences": len(clips),
            "num_samples": sum(lengths) if clips else 0,
            "files": FilesRead(self.split, [clip.id for clip in clips if clip.turn == 0], bad),
            "target": (torch.stack(targets) if clips else targets[0]).view(torch.int32),
            "net_input": {
                "source": source,
                "lengths": torch.tensor(lengths) if min(lengths) < max(lengths) else None,
                "hidden": torch.stack([clip.hidden for clip in clips]) if hides and clips else None,
                "visible_ids": pad_sequence(visible, True, -1) if visible else None,
            },
        }

    def ordered_indices(self) -> np.ndarray:
        """In training, clips of all lengths in random order, or drawn by their weights.

        Clips of like length do not meet on purpose: length often goes with the class. fairseq
        calls this with NumPy's generator seeded by (seed, epoch).
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
        order = drawn + len(self) * _turns(drawn)
        return order

    def num_tokens(self, index: int) -> int:
        """Samples at 16 kHz, what ``dataset.max_tokens`` counts."""
        return int(self.sizes[index % len(self)])

    def num_tokens_vec(self, indices: np.ndarray) -> np.ndarray:
        """:meth:`num_tokens` of many."""
        tokens: np.ndarray = self.sizes[indices % len(self)]
        return tokens

    def filter_indices_by_size(
        self, indices: np.ndarray, max_sizes: int
    ) -> tuple[np.ndarray, list[int]]:
        """fairseq's, for indices that count turns."""
        fits = self.num_tokens_vec(indices) <= max_sizes
        return indices[fits], indices[~fits].tolist()

    def _mixed(
        self, samples: Tensor, target: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Mix in another clip of the split, where that is drawn and the other can be read."""
        drawn = self.augmentation.draw_mixing(len(self), generator)
        if drawn is None:
            return samples, target
        partner, share = drawn
        other = self.read_part(partner, generator)
        if isinstance(other, BadFile):  # tallied when its own turn comes
            return samples, target
        others = torch.from_numpy(self.labels.multi_hot([int(self.rows[partner])])[0])
        return mix(samples, other, share), share * target + (1 - share) * others


def sampling_weights(labels: ClipLabels, rows: np.ndarray) -> np.ndarray:
    """Probability of each of ``rows`` (R,): the sum over its classes of 1 / clips with that class.

    The method is AST's (Gong et al. 2021, arXiv 2104.01778).
    """
    rarity = 1 / np.maximum(labels.counts, 1)
    weights = np.array([rarity[labels[row]].sum() for row in rows.tolist()])
    shares: np.ndarray = weights / weights.sum()
    return shares


def check_one_label(labels: ClipLabels, path: Path) -> None:
    """Make sure that each clip has exactly one class.

    Raises:
        LabelError: one has several; it names the line.
    """
    for row in range(len(labels)):
        if len(labels[row]) != 1:
            raise LabelError(
                f"{path}:{row + 1}: {len(labels[row])} labels; task.multi_label=false wants one a "
                "clip (set it to true where clips have several)"
            )


def _turns(drawn: np.ndarray) -> np.ndarray:
    """How often each value occurred before in ``drawn`` (K,)."""
    order = np.argsort(drawn, kind="stable")
    in_order = drawn[order]
    is_new = np.r_[True, in_order[1:] != in_order[:-1]]
    place = np.arange(len(drawn))
    turns = np.empty(len(drawn), dtype=np.int64)
    turns[order] = place - np.maximum.accumulate(np.where(is_new, place, 0))
    return turns
