"""Order of an epoch by groups of shards, so that each shard is needed for a part of it only.

In each epoch the shards are shuffled and divided into groups of ``task.shards_at_once``. All clips
of a group come before those of the next one, and are shuffled together. So a remote shard is
fetched once per epoch, and the cache has to hold two groups: the one that is read, and the next
one, which is fetched meanwhile. Groups depend on (seed, epoch) alone and are the same on all ranks.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from fairseq.data.data_utils import numpy_seed
from fairseq.data.iterators import ShardedIterator
from torch.utils.data import get_worker_info

from mae_ast.core.io.archive import Member
from mae_ast.core.io.manifest import Manifest
from mae_ast.core.io.plural import plural
from mae_ast.core.io.remote import cache
from mae_ast.core.io.remote.prefetch import Prefetcher
from mae_ast.core.io.remote.urls import is_url
from mae_ast.trainer import ranks

REMOTE_SHARDS_AT_ONCE = 8
GROUPS_IN_CACHE = 2
# Part of a group's clips after which the next group is fetched. Other workers and ranks, which may
# be some batches behind, have then finished the group before, whose room it takes.
FETCHED_AFTER = 0.25
_NO_GROUP = (-1, -1)  # epoch and turn


class ShardOrder:
    """Groups of shards of one split.

    Args:
        manifest: manifest of the split.
        rows: (clips,) rows of the clips in use.
        shards_at_once: number of shards in a group.
        seed: seed of the groups.
        shuffle: draw other groups in each epoch; ``False``: in the order of the manifest.

    Raises:
        ValueError: the cache cannot hold two groups of remote shards.
    """

    def __init__(
        self, manifest: Manifest, rows: np.ndarray, shards_at_once: int, seed: int, shuffle: bool
    ) -> None:
        self.shards, self.shard_of, sizes = _shards_of(manifest, rows)
        self._at_once, self._seed, self._shuffle = shards_at_once, seed, shuffle
        # The turn of each shard's group in the current epoch, and that epoch. In shared memory:
        # worker processes outlive an epoch.
        self._shared = torch.zeros(len(self.shards) + 1, dtype=torch.int64).share_memory_()
        self._shared[:-1] = torch.from_numpy(self._draw(0))
        self._members: tuple[tuple[int, int], np.ndarray] = (_NO_GROUP, np.empty(0, np.int64))
        self._group, self._reads_to_next = _NO_GROUP, 0
        self._prefetcher = Prefetcher()
        self._check_cache(manifest, sizes)

    @classmethod
    def of(
        cls,
        manifest: Manifest,
        rows: np.ndarray,
        shards_at_once: int | None,
        seed: int,
        shuffle: bool,
    ) -> ShardOrder | None:
        """Return the order of a split; ``None`` if its clips need no groups.

        Args:
            manifest, rows, seed, shuffle: see the class.
            shards_at_once: number of shards in a group; ``None``: 8 if shards are remote, else all.
        """
        is_remote = manifest.may_be_remote and any(map(manifest.is_remote, rows.tolist()))
        if shards_at_once is None and is_remote:
            shards_at_once = REMOTE_SHARDS_AT_ONCE
        return (
            None if shards_at_once is None else cls(manifest, rows, shards_at_once, seed, shuffle)
        )

    def groups(self, indices: np.ndarray, epoch: int) -> list[np.ndarray]:
        """Return indices of clips, or of repeats of clips, by group.

        Within a group they keep their order, or its reverse in every other group: if they are
        sorted by length, a batch at the limit of two groups then holds clips of similar length.
        """
        self._shared[:-1] = torch.from_numpy(self._draw(epoch))
        self._shared[-1] = epoch
        turns = self._turns_of(indices)
        order = np.argsort(turns, kind="stable")
        groups = np.split(indices[order], np.flatnonzero(np.diff(turns[order])) + 1)
        return [group[:: 1 - 2 * (n % 2)] for n, group in enumerate(groups)]

    def keep(self, iterator: Any) -> None:
        """Make fairseq's iterator of an epoch shuffle batches within their groups only.

        Args:
            iterator: ``EpochBatchIterator`` whose batches were made of arranged indices.
        """

        def ordered_batches(epoch: int, fix_batches_to_gpus: bool, shuffle: bool) -> list[Any]:
            batches = list(iterator.frozen_batches)
            if shuffle:
                block = iterator.num_shards if iterator.grouped_shuffling else 1
                with numpy_seed(iterator.seed + epoch):
                    batches = self._shuffled(batches, block)
            return list(
                ShardedIterator(batches, iterator.num_shards, iterator.shard_id, fill_value=[])
            )

        iterator.ordered_batches = ordered_batches

    def companion(self, index: int, drawn: int) -> int:
        """Return a clip of the same group as clip ``index``, determined by the number ``drawn``."""
        group = self._group_of(index)
        if self._members[0] != group:
            self._members = group, self._clips_of(group)
        members = self._members[1]
        return int(members[drawn % len(members)])

    def spread(self, count: int) -> np.ndarray:
        """Return at most ``count`` clips, spread evenly over the shard that the epoch begins with.

        Reading them for a measurement fetches nothing that training would not fetch.
        """
        first = int(np.flatnonzero(self._draw(1) == 0)[0])
        members = np.flatnonzero(self.shard_of == first)
        return members[np.unique(np.linspace(0, len(members) - 1, count).astype(np.int64))]

    def before_reading(self, index: int) -> None:
        """Fetch the remote shards of a clip's group in the background, and later the next group."""
        group = self._group_of(index)
        if group != self._group:
            self._group = group
            worker = get_worker_info()
            readers = ranks.num_ranks() * (1 if worker is None else worker.num_workers)
            num_clips = len(self._clips_of(group))
            self._reads_to_next = math.ceil(FETCHED_AFTER * num_clips / readers)
            self._prefetcher.request(self._urls(group[1]))
        self._reads_to_next -= 1
        if self._reads_to_next == 0:
            self._prefetcher.request(self._urls(group[1] + 1))

    def _draw(self, epoch: int) -> np.ndarray:
        """Return the turn of each shard, (shards,) int64."""
        order = np.arange(len(self.shards))
        if self._shuffle:
            order = np.random.default_rng([self._seed, epoch]).permutation(order)
        turns = np.empty(len(self.shards), dtype=np.int64)
        turns[order] = np.arange(len(self.shards)) // self._at_once
        return turns

    def _group_of(self, index: int) -> tuple[int, int]:
        return int(self._shared[-1]), int(self._shared[self.shard_of[index]])

    def _clips_of(self, group: tuple[int, int]) -> np.ndarray:
        return np.flatnonzero(self._shared.numpy()[self.shard_of] == group[1])

    def _turns_of(self, indices: np.ndarray) -> np.ndarray:
        turns: np.ndarray = self._shared.numpy()[self.shard_of[indices % len(self.shard_of)]]
        return turns

    def _shuffled(self, batches: list[Any], block: int) -> list[Any]:
        """Shuffle batches within their groups, by NumPy's global generator, as fairseq does.

        Args:
            batches: batches in the order of their groups.
            block: number of consecutive batches that stay together.
        """
        firsts = np.array([batch[0] for batch in batches], dtype=np.int64)
        limits = np.flatnonzero(np.diff(self._turns_of(firsts))) + 1
        shuffled: list[Any] = []
        for begin, end in zip([0, *limits], [*limits, len(batches)], strict=True):
            blocks = [batches[at : min(at + block, end)] for at in range(begin, end, block)]
            # The last batch may hold clips of the next group, and stays at the limit then.
            turns = self._turns_of(np.asarray(batches[end - 1]))
            num_moved = len(blocks) - int(turns.max() > turns[0])
            order = np.random.permutation(num_moved).tolist()
            for number in [*order, *range(num_moved, len(blocks))]:
                shuffled += blocks[number]
        return shuffled

    def _urls(self, turn: int) -> list[str]:
        shards = np.flatnonzero(self._shared.numpy()[:-1] == turn).tolist()
        return [self.shards[shard] for shard in shards if is_url(self.shards[shard])]

    def _check_cache(self, manifest: Manifest, sizes: np.ndarray) -> None:
        remote = np.array([is_url(shard) for shard in self.shards])
        largest = np.sort(sizes[remote])[::-1]
        needed = int(largest[: GROUPS_IN_CACHE * self._at_once].sum())
        if needed > cache.cache_bytes():
            shards = plural(GROUPS_IN_CACHE * self._at_once, "shard")
            raise ValueError(
                f"{manifest.path}: {shards} of up to {largest[0] / cache.GB:.3g} GB, two groups of "
                f"task.shards_at_once={self._at_once}, need {needed / cache.GB:.3g} GB; raise "
                f"{cache.SIZE_VARIABLE}, or lower task.shards_at_once"
            )


def _shards_of(manifest: Manifest, rows: np.ndarray) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Return the shards, the shard of each row (rows,), and the size of each shard in bytes.

    Loose files together count as one shard, without a name.
    """
    numbers: dict[str, int] = {}
    sizes: list[int] = []
    shard_of = np.empty(len(rows), dtype=np.int64)
    for at, row in enumerate(rows.tolist()):
        member = Member.parse(manifest.audio_path(row))
        name, end = ("", 0) if member is None else (member.archive, member.offset + member.length)
        number = numbers.setdefault(name, len(sizes))
        if number == len(sizes):
            sizes.append(0)
        sizes[number] = max(sizes[number], end)
        shard_of[at] = number
    return list(numbers), shard_of, np.array(sizes, dtype=np.int64)
