"""The fairseq dataset for pretraining: manifest rows to batches of audio and masks."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from fairseq.data import FairseqDataset
from torch.utils.data import get_worker_info

from mae_ast.core.audio import SAMPLE_RATE, AudioError, read_audio
from mae_ast.core.batch import Batch, Clip, Collater, draw_start
from mae_ast.core.manifest import Manifest, ManifestError
from mae_ast.data.bad_files import BadFiles
from mae_ast.interruption import heed_only_the_trainer

logger = logging.getLogger(__name__)


class PretrainingDataset(FairseqDataset):  # type: ignore[misc]
    """Clips of one split.

    Args:
        manifest: its files.
        collater: makes batches of clips.
        seed: of crops, masks and the order.
        shuffle: order and epochs as in training; ``False``: as in validation, always alike.
        min_samples: shorter clips are left out, at 16 kHz; ``None``: no such limit.
        max_keep_samples: longer clips are left out, at 16 kHz; ``None``: no such limit.
        max_samples: longer clips are cropped to this, at 16 kHz; ``None``: no such limit.
        max_bad_fraction: share of the files read that may turn out unusable.

    Raises:
        ManifestError: a clip is shorter than one patch, or none is left.
    """

    def __init__(
        self,
        manifest: Manifest,
        collater: Collater,
        seed: int,
        shuffle: bool,
        min_samples: int | None = None,
        max_keep_samples: int | None = None,
        max_samples: int | None = None,
        max_bad_fraction: float = 0.01,
    ) -> None:
        super().__init__()
        self.manifest = manifest
        self.seed = seed
        self.shuffle = shuffle
        self.collate = collater
        # In shared memory: worker processes outlive an epoch.
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()
        self._is_worker_ready = False

        one_patch = collater.config.patch_shape.min_samples
        self._least = max(one_patch, min_samples or 0)
        lengths = manifest.num_samples
        _check_one_patch(manifest, lengths, one_patch, min_samples)
        keep = lengths >= (min_samples or 0)
        num_short = int((~keep).sum())
        if max_keep_samples is not None:
            keep &= lengths <= max_keep_samples
        self.rows = np.flatnonzero(keep)
        if not len(self.rows):
            raise ManifestError(
                f"{manifest.path}: no clip is left of {len(manifest)}: all are shorter than "
                f"min_sample_size={min_samples} or longer than max_keep_size={max_keep_samples} "
                "(samples at 16 kHz)"
            )
        if max_samples is not None and max_samples < self._least:
            raise ValueError(
                f"max_sample_size={max_samples} crops clips to less than one patch or "
                f"min_sample_size; at least {self._least} samples at 16 kHz are needed"
            )
        self.bad_files = BadFiles(manifest, len(self.rows), max_bad_fraction)
        self._lengths = lengths[self.rows]
        self.sizes = np.minimum(lengths[self.rows], max_samples or np.iinfo(np.int64).max)
        logger.info(
            "%s: %d clips, %.1f h at most %.1f s each; left out %d short, %d long",
            manifest.path,
            len(self.rows),
            self.sizes.sum() / SAMPLE_RATE / 3600,
            self.sizes.max() / SAMPLE_RATE,
            num_short,
            len(manifest) - num_short - len(self.rows),
        )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Clip | None:
        """Decode a clip's part; ``None`` where the file is bad."""
        self._prepare_worker()
        row = int(self.rows[index])
        if self.bad_files.is_bad(row):
            return None
        path = self.manifest.audio_path(row)
        clip = Clip.of(row, torch.empty(0), self.seed, int(self._epoch))
        wanted = int(self.sizes[index])
        room = int(self._lengths[index]) - wanted if self.collate.random_crop else 0
        try:
            samples = self._read(path, draw_start(room, clip.generator), wanted)
        except (AudioError, OSError) as error:
            self.bad_files.add_bad(row, str(error))
            return None
        self.bad_files.add_good(row)
        return dataclasses.replace(clip, samples=samples)

    def _read(self, path: str, start: int, wanted: int) -> torch.Tensor:
        """A part, or the file's beginning where the manifest promised more than there is.

        A file is so judged by what it holds, not by which crop was drawn.
        """
        try:
            samples = read_audio(path, start, wanted)
        except AudioError:
            if start == 0:
                raise
            samples = torch.empty(0)
        if len(samples) < self._least and start > 0:
            samples = read_audio(path, 0, wanted)
        if len(samples) < self._least:
            raise AudioError(
                f"{path}: decodes to {len(samples)} samples at 16 kHz, at least "
                f"{self._least} are needed"
            )
        return samples

    def collater(self, samples: Sequence[Clip | None]) -> dict[str, Any]:
        """Clips to fairseq's batch; without any usable clip, one that counts for nothing."""
        return to_sample(self.collate([clip for clip in samples if clip is not None]))

    def set_epoch(self, epoch: int) -> None:
        """Training draws new crops and masks each epoch, validation keeps those of epoch 0."""
        if self.shuffle:
            self._epoch[0] = epoch

    def ordered_indices(self) -> np.ndarray:
        """Longest first, so that clips of like length meet; in training, ties in random order.

        fairseq calls this with NumPy's generator seeded by (seed, epoch).
        """
        ties = np.arange(len(self))
        if self.shuffle:
            # A stream of its own: fairseq shuffles the batches from the same seed, and would undo
            # an order that was drawn from it.
            ties = np.random.default_rng(np.random.randint(2**31)).permutation(len(self))
        order: np.ndarray = np.lexsort((ties, -self.sizes))
        return order

    def num_tokens(self, index: int) -> int:
        """Samples at 16 kHz, what ``dataset.max_tokens`` counts."""
        return int(self.sizes[index])

    def num_tokens_vec(self, indices: np.ndarray) -> np.ndarray:
        """:meth:`num_tokens` of many."""
        tokens: np.ndarray = self.sizes[indices]
        return tokens

    def size(self, index: int) -> int:
        """The same as :meth:`num_tokens`."""
        return self.num_tokens(index)

    @property
    def supports_fetch_outside_dataloader(self) -> bool:
        """No: the trainer needs no batch in advance, since none of ours is empty."""
        return False

    def _prepare_worker(self) -> None:
        if not self._is_worker_ready and get_worker_info() is not None:
            self._is_worker_ready = True
            heed_only_the_trainer()


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


def _check_one_patch(
    manifest: Manifest, lengths: np.ndarray, one_patch: int, min_samples: int | None
) -> None:
    if min_samples is not None and min_samples >= one_patch:
        return  # such clips are left out anyway
    too_short = np.flatnonzero((lengths < one_patch) & (lengths >= (min_samples or 0)))
    if len(too_short):
        row = int(too_short[0])
        raise ManifestError(
            f"{manifest.where(row)}: {manifest.row_path(row)}: {lengths[row]} samples at 16 kHz "
            f"are shorter than one patch ({one_patch}); take such rows out "
            f"({len(too_short)} here), or set task.min_sample_size={one_patch}"
        )
