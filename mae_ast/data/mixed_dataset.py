"""fairseq dataset for pretraining on several corpora: clips drawn in the shares of a mixture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mae_ast.core.frontend.collate import Clip
from mae_ast.core.io.joined import JoinedManifest
from mae_ast.core.io.manifest import Manifest, ManifestError
from mae_ast.data.bad_files import BadFile
from mae_ast.data.mixture import Mixture
from mae_ast.data.pretraining_dataset import PretrainingDataset

_FOR_ORDER = 1  # purpose of a generator, besides that of the mixture


class MixedDataset(PretrainingDataset):
    """Training clips of several corpora, some of them repeated or absent in an epoch.

    Index ``i + k * len(self)`` is clip ``i``, drawn for the ``k + 1``-th time in an epoch, with
    another crop and mask each time.

    Args:
        manifest: joined manifest with a part for each corpus.
        mixture: shares of the corpora.
        arguments, options: see :class:`PretrainingDataset`.

    Raises:
        ManifestError: a clip is shorter than one patch, or a corpus that is to be drawn from has
            no clip left.
    """

    def __init__(
        self, manifest: Manifest, *arguments: Any, mixture: Mixture, **options: Any
    ) -> None:
        super().__init__(manifest, *arguments, **options)
        assert isinstance(manifest, JoinedManifest)
        self.mixture = mixture
        self._part = manifest.part
        self._paths = [each.path for each in manifest.manifests]
        self._corpora = manifest.part[self.rows]
        self._usable = np.arange(len(self))  # clips that are not too long for a batch
        self._check_sizes()

    def epoch_text(self) -> str:
        """Return the number of clips per epoch of each corpus as a text."""
        return self.mixture.describe(self._sizes())

    def clips_of_epoch(self) -> np.ndarray:
        """Return the clips of the current epoch in the order of ``rows``, with repeats."""
        return np.repeat(self._usable, self._times())

    def ordered_indices(self) -> np.ndarray:
        """Return the epoch's indices by decreasing length, in random order for equal lengths."""
        times = self._times()
        clips = np.repeat(self._usable, times)
        repeats = np.arange(len(clips)) - np.repeat(np.cumsum(times) - times, times)
        ties = np.random.default_rng((self.seed, self.epoch, _FOR_ORDER)).permutation(len(clips))
        order = np.lexsort((ties, -self.sizes[clips]))
        indices: np.ndarray = (clips + len(self) * repeats)[order]
        return indices

    def filter_indices_by_size(
        self, indices: np.ndarray, max_sizes: int
    ) -> tuple[np.ndarray, list[int]]:
        """Skip clips that are too long for a batch; the shares hold among the others.

        Args:
            indices: the epoch's indices.
            max_sizes: maximum samples at 16 kHz.

        Returns:
            ``indices``, or those of an epoch without the longer clips; and the longer clips.

        Raises:
            ManifestError: a corpus that is to be drawn from has no other clip.
        """
        fits = self.sizes <= max_sizes
        if int(fits.sum()) != len(self._usable):
            self._usable = np.flatnonzero(fits)
            self._check_sizes()
            indices = self.ordered_indices()
        return indices, np.flatnonzero(~fits).tolist()

    def collater(self, samples: Sequence[Clip | BadFile]) -> dict[str, Any]:
        """Collate clips as :class:`PretrainingDataset`; ``clips_of`` counts them by corpus."""
        rows = [clip.id for clip in samples if isinstance(clip, Clip)]
        counts = np.bincount(self._part[rows], minlength=len(self.mixture.names))
        clips_of = dict(zip(self.mixture.names, counts.tolist(), strict=True))
        return {**super().collater(samples), "clips_of": clips_of}

    def _sizes(self) -> np.ndarray:
        """Return the number of usable clips of each corpus, (corpora,) int64."""
        return np.bincount(self._corpora[self._usable], minlength=len(self.mixture.names))

    def _times(self) -> np.ndarray:
        """Return how many times the current epoch draws each usable clip, (clips,) int64."""
        return self.mixture.times(self._sizes(), self.seed, self.epoch)

    def _check_sizes(self) -> None:
        """Refuse a corpus without usable clips, unless its share is 0."""
        shares = self.mixture.shares
        for corpus in np.flatnonzero(self._sizes() == 0).tolist():
            if shares is None or shares[corpus] > 0:
                raise ManifestError(
                    f"{self._paths[corpus]}: all clips are skipped for their length "
                    "(task.min_sample_size, task.max_keep_size, dataset.max_tokens); change the "
                    "limits, or remove the folder from task.data"
                )
