"""Read the clips of a manifest ahead, in batches; log and skip unusable ones."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from typing import NamedTuple

from torch import Tensor

from mae_ast.core.io.audio import SAMPLE_RATE, AudioError
from mae_ast.core.io.manifest import Manifest
from mae_ast.core.io.plural import plural
from mae_ast.core.io.read_ahead import Progress, map_ahead, one_ahead, run_steps
from mae_ast.core.io.segment import read_segment

BATCH_SAMPLES = 640 * SAMPLE_RATE  # samples per batch, padding included
READERS = 4  # files decoded concurrently

logger = logging.getLogger(__name__)


class Batch(NamedTuple):
    """Consecutive clips.

    Args:
        rows: their rows in the manifest, with those of skipped clips.
        clips: row to samples, (L,) int16 at 16 kHz, of the usable clips.
    """

    rows: list[int]
    clips: dict[int, Tensor]


def for_each_batch(
    manifest: Manifest,
    min_samples: int,
    use: Callable[[Batch], None],
    rows: Iterable[int] | None = None,
    *,
    max_samples: int | None = None,
    batch_samples: int = BATCH_SAMPLES,
    level: int = logging.WARNING,
    progress: Progress | None = None,
) -> None:
    """Call a function with the clips of a manifest, batch by batch.

    The next batch is read while the function runs.

    Args:
        manifest: manifest of the clips.
        min_samples: minimum length of a clip at 16 kHz; shorter ones are skipped.
        use: function of a batch.
        rows: rows to read, in this order; default: all.
        max_samples: longer clips are cut to their beginning.
        batch_samples: maximum size of a batch, number of clips times the longest, of more than one
            clip.
        level: logging level of messages about skipped clips.
        progress: wrapper of the iteration over clips, called with it and the number of clips.
    """
    listed = list(range(len(manifest)) if rows is None else rows)

    def read(row: int) -> Tensor | None:
        return read_or_skip(manifest, row, min_samples, max_samples, level)

    def used() -> Iterator[int]:
        with closing(one_ahead(batches(read, listed, batch_samples))) as ahead:
            for batch in ahead:
                use(batch)
                yield from batch.rows

    run_steps(used(), len(listed), progress)


def batches(
    read: Callable[[int], Tensor | None],
    rows: Sequence[int],
    batch_samples: int = BATCH_SAMPLES,
) -> Generator[Batch, None, None]:
    """Read clips in threads, and yield them in batches of consecutive ones.

    Args:
        read: function of a row, which returns its samples (L,), or ``None`` to skip it.
        rows: the rows, in this order.
        batch_samples: maximum size of a batch, number of clips times the longest, of more than one
            clip.
    """
    batch, longest = Batch([], {}), 0
    with closing(map_ahead(read, rows, READERS, READERS)) as clips:
        for row, samples in zip(rows, clips, strict=True):
            if samples is not None:
                longest = max(longest, len(samples))
                if batch.clips and longest * (len(batch.clips) + 1) > batch_samples:
                    yield batch
                    batch, longest = Batch([], {}), len(samples)
                batch.clips[row] = samples
            batch.rows.append(row)
    if batch.rows:
        yield batch


def read_or_skip(
    manifest: Manifest,
    row: int,
    min_samples: int,
    max_samples: int | None = None,
    level: int = logging.WARNING,
) -> Tensor | None:
    """Read a clip, (L,) int16 at 16 kHz.

    Args:
        manifest: manifest of the clips.
        row: row of the clip.
        min_samples: minimum length, usually one patch.
        max_samples: a longer clip is cut to its beginning.
        level: logging level of the reason for skipping the clip.

    Returns:
        The samples; ``None`` if the clip cannot be decoded or is too short.
    """
    segment = manifest.segment(row)
    try:
        samples = read_segment(segment, 0, max_samples)
        check_length(samples, min_samples, segment)
    except (AudioError, OSError) as error:
        logger.log(level, "%s: skipped: %s", manifest.where(row), error)
        return None
    return samples


def check_length(samples: Tensor, min_samples: int, path: object) -> None:
    """Raise an error for a clip shorter than one patch.

    Raises:
        AudioError: ``samples`` has fewer than ``min_samples``.
    """
    if len(samples) < min_samples:
        raise AudioError(
            f"{path}: {len(samples)} samples at 16 kHz are shorter than one patch ({min_samples})"
        )


def check_any(num_used: int, manifest: Manifest) -> None:
    """Raise an error if all clips were skipped.

    Raises:
        AudioError: ``num_used`` is 0.
    """
    if not num_used:
        raise AudioError(
            f"{manifest.path}: none of {plural(len(manifest), 'clip')} can be used; see the "
            "warnings above"
        )
