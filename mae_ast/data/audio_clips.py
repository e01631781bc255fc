"""Base class of the fairseq datasets: select, order, crop and read the clips of a manifest.

Subclasses define what an item holds besides the audio, and how items are collated.
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
from mae_ast.core.io.audio import SAMPLE_RATE, AudioError
from mae_ast.core.io.manifest import Manifest, ManifestError
from mae_ast.core.io.remote.urls import RemoteError
from mae_ast.core.io.segment import SegmentError, read_segment
from mae_ast.data.bad_files import BadFile, BadFiles
from mae_ast.data.shard_order import ShardOrder
from mae_ast.trainer import ranks
from mae_ast.trainer.preemption import heed_only_the_trainer

MAX_SKIPPED = 0.1  # a warning is logged if more than this ratio of clips is skipped

logger = logging.getLogger(__name__)


class AudioClips(FairseqDataset):  # type: ignore[misc]
    """Clips of one split.

    Args:
        manifest: audio files of the split.
        patch_samples: samples at 16 kHz of one patch, the shortest clip that the model accepts.
        seed: seed of all random draws.
        shuffle: shuffle in each epoch, as in training; ``False``: fixed order, as in validation.
        random_crop: crop longer clips at a random position instead of keeping their beginning.
        min_samples: skip shorter clips, at 16 kHz; ``None``: no limit.
        max_keep_samples: skip longer clips, at 16 kHz; ``None``: no limit.
        max_samples: crop longer clips to this length, at 16 kHz; ``None``: no limit.
        max_bad_fraction: maximum ratio of unusable files among those read.
        shards_at_once: number of shards whose clips are shuffled together; ``None``: 8 if they are
            remote, else all.

    Raises:
        ManifestError: a clip is shorter than one patch, or all clips are skipped.
        ValueError: ``max_samples`` is shorter than one patch or ``min_samples``.
    """

    def __init__(
        self,
        manifest: Manifest,
        patch_samples: int,
        seed: int,
        shuffle: bool,
        random_crop: bool = True,
        min_samples: int | None = None,
        max_keep_samples: int | None = None,
        max_samples: int | None = None,
        max_bad_fraction: float = 0.01,
        shards_at_once: int | None = None,
    ) -> None:
        super().__init__()
        self.manifest = manifest
        self.split = manifest.path.stem  # the task may set another name
        self.seed = seed
        self.shuffle = shuffle
        self.random_crop = random_crop
        # In shared memory: worker processes outlive an epoch.
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()
        self._is_worker_ready = False

        self._min_samples = max(patch_samples, min_samples or 0)
        lengths = manifest.num_samples
        _check_lengths(manifest, lengths, patch_samples, min_samples)
        is_short = lengths < (min_samples or 0)
        is_long = lengths > (max_keep_samples or np.iinfo(np.int64).max)
        self.rows = np.flatnonzero(~(is_short | is_long))
        num_short, num_long = int(is_short.sum()), int(is_long.sum())
        reasons = _skip_reasons(num_short, min_samples, num_long, max_keep_samples)
        if not len(self.rows):
            raise ManifestError(
                f"{manifest.path}: all {len(manifest)} clips are skipped: {reasons}; clip lengths "
                f"are {_length_range(lengths)}"
            )
        if num_short + num_long > MAX_SKIPPED * len(manifest) and ranks.is_first():
            logger.warning(
                "%s: %d of %d clips are skipped: %s",
                *(manifest.path, num_short + num_long, len(manifest), reasons),
            )
        if max_samples is not None and max_samples < self._min_samples:
            raise ValueError(
                f"task.max_sample_size={max_samples} crops clips to less than one patch or "
                f"task.min_sample_size; set it to at least {self._min_samples} samples at 16 kHz"
            )
        self.bad_files = BadFiles(manifest, max_bad_fraction)
        self.shard_order = ShardOrder.of(manifest, self.rows, shards_at_once, seed, shuffle)
        self.num_used = len(self.rows)  # distinct clips in an epoch
        self.lengths = lengths[self.rows]
        self.sizes = np.minimum(lengths[self.rows], max_samples or np.iinfo(np.int64).max)
        logger.info(
            "%s: %d clips, %.1f h, each at most %.1f s; skipped %d short, %d long",
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
        """Current epoch of training; 0 in validation."""
        return int(self._epoch)

    def read_part(self, index: int, generator: torch.Generator) -> Tensor | BadFile:
        """Read a clip, cropped to its length in ``sizes``.

        Args:
            index: index of the clip in ``rows``.
            generator: draws the start of the crop.

        Returns:
            (L,) int16 samples at 16 kHz.
        """
        self._prepare_worker()
        if self.shard_order is not None:
            self.shard_order.before_reading(index)
        row = int(self.rows[index])
        num_samples = int(self.sizes[index])
        slack = int(self.lengths[index]) - num_samples if self.random_crop else 0
        try:
            return self._read(row, draw_start(slack, generator), num_samples)
        except RemoteError as error:
            return BadFile(row, str(error), ends_run=True)
        except (AudioError, OSError) as error:
            return BadFile(row, str(error))

    def read_middle(self, index: int, max_samples: int) -> Tensor | BadFile:
        """Read at most ``max_samples`` (L,) int16 from the middle of a clip."""
        row = int(self.rows[index])
        length = int(self.lengths[index])
        num_samples = min(length, max(max_samples, self._min_samples))
        try:
            return self._read(row, (length - num_samples) // 2, num_samples)
        except (AudioError, RemoteError, OSError) as error:
            return BadFile(row, str(error))

    def _read(self, row: int, start: int, num_samples: int) -> torch.Tensor:
        """Read a part of a clip, or its beginning if the file is shorter than the manifest says.

        Whether a file counts as bad thus depends on its content and not on the crop drawn.
        """
        segment = self.manifest.segment(row)
        try:
            samples = read_segment(segment, start, num_samples)
        except SegmentError:
            raise
        except AudioError:
            if start == 0:
                raise
            samples = torch.empty(0)
        if len(samples) < self._min_samples and start > 0:
            samples = read_segment(segment, 0, num_samples)
        if len(samples) < self._min_samples:
            raise AudioError(
                f"{segment}: decodes to {len(samples)} samples at 16 kHz, at least "
                f"{self._min_samples} are needed"
            )
        return samples

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of training's random draws; validation stays at epoch 0."""
        if self.shuffle:
            self._epoch[0] = epoch

    def clips_of_epoch(self) -> np.ndarray:
        """Return the clips of an epoch in the order of ``rows``, with repeats: (clips,) int64."""
        return np.arange(len(self))

    def ordered_indices(self) -> np.ndarray:
        """Return indices by decreasing length, so that batches hold clips of similar length.

        In training, clips of equal length are shuffled. fairseq calls this with NumPy's global
        generator seeded by (seed, epoch).
        """
        ties = np.arange(len(self))
        if self.shuffle:
            # A separate generator: fairseq shuffles the batches with the same seed, which would
            # undo a permutation drawn from the global one.
            ties = np.random.default_rng(np.random.randint(2**31)).permutation(len(self))
        order: np.ndarray = np.lexsort((ties, -self.sizes))
        return order

    def batch_by_size(self, indices: np.ndarray, *args: Any, **kwargs: Any) -> list[Any]:
        """Make batches as fairseq does; set ``num_used`` to the number of distinct clips.

        Clips are arranged by groups of shards first, if :attr:`shard_order` is set.
        """
        if self.shard_order is not None:
            indices = np.concatenate(self.shard_order.groups(indices, self.epoch))
        self.count_distinct(indices)
        batches: list[Any] = super().batch_by_size(indices, *args, **kwargs)
        return batches

    def count_distinct(self, indices: np.ndarray) -> None:
        """Set ``num_used``, the number of distinct clips of an epoch."""
        # Larger indices are repeats of a clip in the same epoch.
        self.num_used = int(np.count_nonzero(indices < len(self)))

    def num_tokens(self, index: int) -> int:
        """Return a clip's samples at 16 kHz, the unit of ``dataset.max_tokens``."""
        return int(self.sizes[index % len(self)])

    def num_tokens_vec(self, indices: np.ndarray) -> np.ndarray:
        """Return :meth:`num_tokens` of several clips."""
        tokens: np.ndarray = self.sizes[indices % len(self)]
        return tokens

    def size(self, index: int) -> int:
        """Return :meth:`num_tokens`."""
        return self.num_tokens(index)

    @property
    def supports_fetch_outside_dataloader(self) -> bool:
        """False: no batch is empty, so the trainer needs no dummy batch in advance."""
        return False

    def _prepare_worker(self) -> None:
        if not self._is_worker_ready and get_worker_info() is not None:
            self._is_worker_ready = True
            heed_only_the_trainer()


def _skip_reasons(
    num_short: int, min_samples: int | None, num_long: int, max_keep_samples: int | None
) -> str:
    """Describe how many clips are skipped for their length, and by which settings."""
    reasons = []
    if num_short and min_samples is not None:
        limit = f"{min_samples / SAMPLE_RATE:.3g} s (task.min_sample_size={min_samples})"
        reasons.append(f"{num_short} shorter than {limit}")
    if num_long and max_keep_samples is not None:
        limit = f"{max_keep_samples / SAMPLE_RATE:.3g} s (task.max_keep_size={max_keep_samples})"
        reasons.append(f"{num_long} longer than {limit}")
    return " and ".join(reasons)


def _length_range(lengths: np.ndarray) -> str:
    return f"{lengths.min() / SAMPLE_RATE:.3g} to {lengths.max() / SAMPLE_RATE:.3g} s"


def _check_lengths(
    manifest: Manifest, lengths: np.ndarray, patch_samples: int, min_samples: int | None
) -> None:
    """Refuse clips shorter than one patch that ``min_samples`` does not skip."""
    if min_samples is not None and min_samples >= patch_samples:
        return
    too_short = np.flatnonzero((lengths < patch_samples) & (lengths >= (min_samples or 0)))
    if len(too_short):
        row = int(too_short[0])
        raise ManifestError(
            f"{manifest.where(row)}: {manifest.row_path(row)}: {lengths[row]} samples at 16 kHz "
            f"are shorter than one patch ({patch_samples}); remove the {len(too_short)} such rows, "
            f"or skip them with task.min_sample_size={patch_samples}"
        )
