"""Mixture of corpora: the ratio of an epoch's clips that each corpus gets, and which clips.

An epoch has as many clips as all corpora together. ``counts`` divides this number by the shares, to
the clip. A corpus whose count is greater than its size repeats clips; one whose count is smaller is
subsampled. Each clip is drawn ``count // size`` times. The remaining ``count % size`` clips are
consecutive ones of all clips in a random order, which is the same in all epochs: each epoch starts
where the last one ended, and the first clip follows the last. So a clip is drawn floor or ceil of
``count / size`` times in an epoch, and floor or ceil of ``epochs * count / size`` times in several;
all clips are drawn before one is drawn once more.

What an epoch draws is a function of (seed, epoch) alone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_FOR_DRAWS = 0  # purpose of a generator, besides that of the order of an epoch
_TAKEN = ("per_s",)  # clips_NAME is another logged value


@dataclass(frozen=True)
class Mixture:
    """Shares of several corpora in each epoch's clips.

    Args:
        names: names of the corpora in logs, all different.
        shares: one per corpus, of any sum; ``None``: size ** (1 / temperature), where the size is
            the number of clips.
        temperature: above 0; 1: each clip once per epoch; larger values: more equal shares.
    """

    names: tuple[str, ...]
    shares: tuple[float, ...] | None = None
    temperature: float = 1.0

    @classmethod
    def of(
        cls, folders: Sequence[Path], shares: Sequence[float] | None, temperature: float
    ) -> Mixture | None:
        """Return the mixture of the data folders of a run; ``None`` for a single folder.

        Args:
            folders: ``task.data``.
            shares: ``task.mixture``.
            temperature: ``task.mixture_temperature``.

        Raises:
            ValueError: the settings are invalid; see also :func:`corpus_names`.
        """
        names = corpus_names(folders)
        text = "" if shares is None else f"task.mixture=[{','.join(f'{s:g}' for s in shares)}]"
        if len(folders) == 1:
            if text or temperature != 1:
                raise ValueError(
                    f"{text or f'task.mixture_temperature={temperature:g}'}: there is only one "
                    f"data folder, {folders[0]}; name several, task.data=[A,B]"
                )
            return None
        if shares is None:
            return cls(names, None, temperature)
        if temperature != 1:
            raise ValueError(
                f"{text} and task.mixture_temperature={temperature:g} both set the shares; set "
                "only one of them"
            )
        if len(shares) != len(names):
            raise ValueError(
                f"{text}: the number of shares is {len(shares)}, that of data folders "
                f"{len(names)} ({', '.join(names)}); one share per folder is needed"
            )
        if not all(0 <= share < float("inf") for share in shares) or not any(shares):
            raise ValueError(f"{text}: shares must be 0 or greater, and not all 0")
        return cls(names, tuple(shares))

    def counts(self, sizes: np.ndarray) -> np.ndarray:
        """Return the number of clips of each corpus in an epoch, (corpora,) int64.

        Args:
            sizes: number of clips of each corpus, (corpora,) int64; their sum is the length of the
                epoch, which the counts add up to. A count differs by less than 1 from its share.
        """
        if self.shares is None:
            weights = (sizes / sizes.max()) ** (1 / self.temperature)
        else:
            weights = np.asarray(self.shares) / max(self.shares)
        exact: np.ndarray = sizes.sum() * weights / weights.sum()
        counts: np.ndarray = np.floor(exact).astype(np.int64)
        largest = np.argsort(counts - exact, kind="stable")
        counts[largest[: sizes.sum() - counts.sum()]] += 1
        return counts

    def times(self, sizes: np.ndarray, seed: int, epoch: int) -> np.ndarray:
        """Return how many times an epoch draws each clip, (clips,) int64, corpus after corpus.

        Args:
            sizes: number of clips of each corpus, (corpora,) int64; 0 only where the count is 0.
            seed: seed of the order in which clips are drawn.
            epoch: number of the epoch.
        """
        drawn = []
        for corpus, (size, count) in enumerate(zip(sizes, self.counts(sizes), strict=True)):
            each, rest = divmod(int(count), int(size)) if count else (0, 0)
            times = np.full(size, each, dtype=np.int64)
            if rest:
                order = np.random.default_rng((seed, corpus, _FOR_DRAWS)).permutation(size)
                begin = (epoch - 1) * rest
                times[order[np.arange(begin, begin + rest) % size]] += 1
            drawn.append(times)
        return np.concatenate(drawn)

    def describe(self, sizes: np.ndarray) -> str:
        """Return the clips per epoch of each corpus as a text."""
        parts = [
            f"{count} of {name} (each of {size} clips {count / max(size, 1):.3g} times)"
            for name, count, size in zip(self.names, self.counts(sizes), sizes, strict=True)
        ]
        return f"clips per epoch: {', '.join(parts)}"


def corpus_names(folders: Sequence[Path]) -> tuple[str, ...]:
    """Return the names of data folders in logs: their last parts, with ``_`` for odd characters.

    Raises:
        ValueError: a folder is given twice, or two names differ at most in case.
    """
    resolved = [folder.resolve() for folder in folders]
    names = [re.sub(r"[^\w.-]", "_", Path(os.path.abspath(folder)).name) for folder in folders]
    alike = [name.lower() for name in names]
    for number, folder in enumerate(folders):
        if resolved[number] in resolved[:number]:
            raise ValueError(
                f"task.data: {folder} is given twice; task.mixture can raise its share"
            )
        if alike[number] in alike[:number]:
            other = folders[alike.index(alike[number])]
            raise ValueError(
                f"task.data: {other} and {folder} have the same name in logs, {names[number]}; "
                "rename one of the folders, or link to it under another name"
            )
        if len(folders) > 1 and alike[number] in _TAKEN:
            raise ValueError(
                f"task.data: {folder}: clips_{alike[number]} is another logged value; rename the "
                "folder, or link to it under another name"
            )
    return tuple(names)
