"""Scores of recordings by a fine-tuned classifier: a manifest (R, C), or one file (C,)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mae_ast.core.audio import SAMPLE_RATE, AudioError, read_audio, read_long_audio
from mae_ast.core.manifest import Manifest, Progress
from mae_ast.finetuned import FineTuned

BATCH_SAMPLES = 160 * SAMPLE_RATE  # audio that goes through the model at a time
READERS = 2  # files decoded at a time
LONGEST_S = 30.0  # of what a model sees of one file at once


def score_manifest(
    classifier: FineTuned, manifest: Manifest, progress: Progress | None = None
) -> np.ndarray:
    """Score all clips of a split, each whole.

    Args:
        classifier: on any device.
        manifest: its clips.
        progress: wraps the iteration over clips; gets it and their number.

    Returns:
        (R, C) float32 in the manifest's order.

    Raises:
        AudioError: a clip cannot be decoded, or is shorter than one patch.
    """
    order = np.argsort(manifest.num_samples, kind="stable").tolist()  # like lengths together
    scores = np.zeros((len(manifest), len(classifier.labels)), dtype=np.float32)

    def scored() -> Iterator[int]:
        for rows, clips in _batches(classifier, manifest, order):
            scores[rows] = _score(classifier, clips).numpy()
            yield from rows

    steps: Iterable[int] = scored() if progress is None else progress(scored(), len(order))
    deque(steps, maxlen=0)
    return scores


def score_file(classifier: FineTuned, path: Path) -> np.ndarray:
    """(C,): the mean over equal parts of at most 30 s, or of the longest clip of training.

    Raises:
        FileNotFoundError: there is no such file.
        AudioError: it cannot be decoded, or is shorter than one patch.
    """
    samples = read_long_audio(path)
    _check(classifier, samples, path)
    longest = max(round(LONGEST_S * SAMPLE_RATE), classifier.description.clip_samples)
    parts = torch.tensor_split(samples, -(-len(samples) // longest))
    scores = torch.cat([_score(classifier, [part]) for part in parts])
    mean: np.ndarray = scores.mean(0).numpy()
    return mean


def _score(classifier: FineTuned, clips: list[Tensor]) -> Tensor:
    lengths = torch.tensor([len(clip) for clip in clips])
    is_padded = bool((lengths < lengths.max()).any())
    return classifier.scores(pad_sequence(clips, batch_first=True), lengths if is_padded else None)


def _batches(
    classifier: FineTuned, manifest: Manifest, order: list[int]
) -> Iterator[tuple[list[int], list[Tensor]]]:
    def read(row: int) -> Tensor:
        path = manifest.audio_path(row)
        samples = read_audio(path)
        _check(classifier, samples, path)
        return samples

    with ThreadPoolExecutor(READERS) as pool:
        rows: list[int] = []
        longest = 0
        for row in order:
            longest = max(longest, int(manifest.num_samples[row]))
            if rows and longest * (len(rows) + 1) > BATCH_SAMPLES:
                yield rows, list(pool.map(read, rows))
                rows = []
            rows.append(row)
        if rows:
            yield rows, list(pool.map(read, rows))


def _check(classifier: FineTuned, samples: Tensor, path: Path | str) -> None:
    least = classifier.model.encoder.patch_shape.min_samples
    if len(samples) < least:
        raise AudioError(
            f"{path}: {len(samples)} samples at 16 kHz are shorter than one patch ({least})"
        )
