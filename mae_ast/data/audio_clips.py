"""Clips of a manifest as a fairseq dataset: which ones, which parts of them, in which order.

Base of this project's datasets; they add what a batch holds beside the audio.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from fairseq.data import FairseqDataset
from torch import Tensor
from torch.utils.data import get_worker_info

from mae_ast.core.frontend.collate import draw_start
from mae_ast.core.io.audio import SAMPLE_RATE, AudioError, read_audio
from mae_ast.core.io.manifest import Manifest, ManifestError
from mae_ast.data.bad_files import BadFile, BadFiles
from mae_ast.trainer import ranks
from mae_ast.trainer.preemption import heed_only_the_trainer

MAX_SKIPPED = 0.1  # ratio of clips skipped for their length, above which a warning says so

logger = logging.getLogger(__name__)


class AudioClips(FairseqDataset):  # type: ignore[misc]
    """Clips of one split.

    Args:
        manifest: its files.
        one_patch: samples at 16 kHz of the shortest clip that a model takes.
        seed: of all that is drawn.
        shuffle: shuffle in each epoch, as in training; ``False``: fixed order, as in validation.
        random_crop: crop longer clips at a random place instead of at the beginning.
        min_samples: skip shorter clips, at 16 kHz; ``None``: no limit.
        max_keep_samples: skip longer clips, at 16 kHz; ``None``: no limit.
        max_samples: crop longer clips to this length, at 16 kHz; ``None``: no limit.
        max_bad_fraction: maximum ratio of unusable files among those read.

    Raises:
        ManifestError: a clip is shorter than one patch, or none is left.
    """

    def __init__(
        self,
        manifest: Manifest,
        one_patch: int,
        seed: int,
        shuffle: bool,
        random_crop: bool = True,
        min_samples: int | None = None,
        max_keep_samples: int | None = None,
        max_samples: int | None = None,
        max_bad_fraction: float = 0.01,
    ) -> None:
        super().__init__()
        self.manifest = manifest
        self.split = manifest.path.stem  # a task that names it otherwise says so
        self.seed = seed
        self.shuffle = shuffle
        self.random_crop = random_crop
        # In shared memory: worker processes outlive an epoch.
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()
        self._is_worker_ready = False

        self._least = max(one_patch, min_samples or 0)
        lengths = manifest.num_samples
        _check_one_patch(manifest, lengths, one_patch, min_samples)
        is_short = lengths < (min_samples or 0)
        is_long = lengths > (max_keep_samples or np.iinfo(np.int64).max)
        self.rows = np.flatnonzero(~(is_short | is_long))
        num_short, num_long = int(is_short.sum()), int(is_long.sum())
        reasons = _skipped(num_short, min_samples, num_long, max_keep_samples)
        if not len(self.rows):
            raise ManifestError(
                f"{manifest.path}: no clip is left of {len(manifest)}: {reasons}; their lengths "
                f"are {_range(lengths)}"
            )
        if num_short + num_long > MAX_SKIPPED * len(manifest) and ranks.is_first():
            logger.warning(
                "%s: %d of %d clips are skipped: %s",
                *(manifest.path, num_short + num_long, len(manifest), reasons),
            )
        if max_samples is not None and max_samples < self._least:
            raise ValueError(
                f"max_sample_size={max_samples} crops clips to less than one patch or "
                f"min_sample_size; at least {self._least} samples at 16 kHz are needed"
            )
        self.bad_files = BadFiles(manifest, max_bad_fraction)
        self.num_used = len(self.rows)  # clips of an epoch, each counted once
        self.lengths = lengths[self.rows]
        self.sizes = np.minimum(lengths[self.rows], max_samples or np.iinfo(np.int64).max)
        logger.info(
            "%s: %d clips, %.1f h at most %.1f s each; skipped %d short, %d long",
            manifest.path,
            len(self.rows),
            self.sizes.sum() / SAMPLE_RATE / 3600,
            self.sizes.max() / SAMPLE_RATE,
            num_short,
            num_long,
        )

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def epoch(self) -> int:
        """Of training; 0 in validation."""
        return int(self._epoch)

    def read_part(self, index: int, generator: torch.Generator) -> Tensor | BadFile:
        """Read the part (L,) int16 of a clip that is used this time.

        Args:
            index: of the clip among ``rows``.
            generator: draws where the part begins.
        """
        self._prepare_worker()
        row = int(self.rows[index])
        wanted = int(self.sizes[index])
        room = int(self.lengths[index]) - wanted if self.random_crop else 0
        path = self.manifest.audio_path(row)
        try:
            return self._read(path, draw_start(room, generator), wanted)
        except (AudioError, OSError) as error:
            return BadFile(row, str(error))

    def read_middle(self, index: int, max_samples: int) -> Tensor | BadFile:
        """Read at most ``max_samples`` (L,) int16 from the middle of a clip, drawing nothing."""
        row = int(self.rows[index])
        length = int(self.lengths[index])
        wanted = min(length, max(max_samples, self._least))
        try:
            return self._read(self.manifest.audio_path(row), (length - wanted) // 2, wanted)
        except (AudioError, OSError) as error:
            return BadFile(row, str(error))

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

    def batch_by_size(self, indices: np.ndarray, *args: Any, **kwargs: Any) -> list[Any]:
        """fairseq's; keeps how many clips the epoch uses."""
        self.num_used = int(np.count_nonzero(indices < len(self)))  # from there on: further turns
        batches: list[Any] = super().batch_by_size(indices, *args, **kwargs)
        return batches

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


def _skipped(
    num_short: int, min_samples: int | None, num_long: int, max_keep_samples: int | None
) -> str:
    """Say how many clips are skipped for their length, and by which settings."""
    reasons = []
    if num_short and min_samples is not None:
        limit = f"{min_samples / SAMPLE_RATE:.3g} s (task.min_sample_size={min_samples})"
        reasons.append(f"{num_short} shorter than {limit}")
    if num_long and max_keep_samples is not None:
        limit = f"{max_keep_samples / SAMPLE_RATE:.3g} s (task.max_keep_size={max_keep_samples})"
        reasons.append(f"{num_long} longer than {limit}")
    return " and ".join(reasons)


def _range(lengths: np.ndarray) -> str:
    return f"{lengths.min() / SAMPLE_RATE:.3g} to {lengths.max() / SAMPLE_RATE:.3g} s"


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
