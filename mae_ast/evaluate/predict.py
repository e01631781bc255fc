"""Score recordings with a fine-tuned classifier: a manifest (R, C), or each recording (C,)."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mae_ast.core.inference.whole_clips import BATCH_SAMPLES
from mae_ast.core.io.audio import SAMPLE_RATE, AudioError, read_audio
from mae_ast.core.io.manifest import Manifest
from mae_ast.core.io.read_ahead import Progress, one_ahead
from mae_ast.core.io.recordings import Waveform, path_of, read_recording
from mae_ast.evaluate.read_clips import Batch, batches, check_any, check_length, for_each_batch
from mae_ast.finetune.checkpoint import FineTuned


def score_manifest(
    classifier: FineTuned, manifest: Manifest, progress: Progress | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Score the whole clips of a split; log and skip unusable ones.

    Args:
        classifier: classifier on any device.
        manifest: manifest of the clips.
        progress: wrapper of the iteration over clips, called with it and the number of clips.

    Returns:
        (R, C) float32 in the manifest's order, and (R,) bool, False where a clip was skipped
        because it cannot be decoded or is shorter than one patch.

    Raises:
        AudioError: all clips were skipped.
        ValueError: a score is not finite.
    """
    order = np.argsort(manifest.num_samples, kind="stable").tolist()  # similar lengths in a batch
    scores = np.zeros((len(manifest), len(classifier.labels)), dtype=np.float32)
    used = np.zeros(len(manifest), dtype=bool)

    def score(batch: Batch) -> None:
        if rows := list(batch.clips):
            scores[rows] = _score(classifier, list(batch.clips.values()))
            used[rows] = True

    for_each_batch(
        manifest,
        _min_samples(classifier),
        score,
        order,
        batch_samples=BATCH_SAMPLES,
        progress=progress,
    )
    check_any(int(used.sum()), manifest)
    return scores, used


def score_recording(
    classifier: FineTuned, recording: Waveform, sample_rate: int = SAMPLE_RATE
) -> np.ndarray:
    """Score a whole recording, (C,) float32, as :func:`score_manifest` scores a clip.

    Args:
        classifier: classifier on any device.
        recording: file or waveform, in any form that
            :func:`mae_ast.core.inference.features.extract_features` accepts.
        sample_rate: sample rate of an array, in Hz; other forms carry their own.

    Raises:
        FileNotFoundError: the file does not exist.
        AudioError: the file cannot be decoded, or is shorter than one patch.
        ValueError: the waveform is invalid, or a score is not finite.
    """
    name = path_of(recording) or "waveform"
    samples = read_recording(recording, sample_rate, name)
    check_length(samples, _min_samples(classifier), name)
    scores: np.ndarray = _score(classifier, [samples])[0]
    return scores


def score_files(
    classifier: FineTuned, files: Sequence[Path]
) -> Generator[np.ndarray | Exception, None, None]:
    """Score whole files, several at a time; the next ones are decoded meanwhile.

    Args:
        classifier: classifier on any device.
        files: audio files.

    Yields:
        For each file its scores, (C,) float32, as :func:`score_recording` returns them; or the
        ``FileNotFoundError`` or ``AudioError`` that it would raise.

    Raises:
        ValueError: a score is not finite.
    """
    problems: dict[int, Exception] = {}
    min_samples = _min_samples(classifier)

    def read(row: int) -> Tensor | None:
        try:
            samples = read_audio(files[row])
            check_length(samples, min_samples, files[row])
        except (AudioError, FileNotFoundError) as error:
            problems[row] = error
            return None
        return samples

    with closing(one_ahead(batches(read, range(len(files))))) as ahead:
        for batch in ahead:
            found: dict[int, np.ndarray] = {}
            for rows in _similar_lengths(batch.clips):
                scores = _score(classifier, [batch.clips[row] for row in rows])
                found.update(zip(rows, scores, strict=True))
            for row in batch.rows:
                yield found[row] if row in found else problems.pop(row)


def _similar_lengths(clips: Mapping[int, Tensor]) -> Iterator[list[int]]:
    """Group the rows of clips by length, into batches of at most ``BATCH_SAMPLES``."""
    rows: list[int] = []
    for row in sorted(clips, key=lambda row: len(clips[row])):
        if rows and (len(rows) + 1) * len(clips[row]) > BATCH_SAMPLES:
            yield rows
            rows = []
        rows.append(row)
    if rows:
        yield rows


def _score(classifier: FineTuned, clips: list[Tensor]) -> np.ndarray:
    lengths = torch.tensor([len(clip) for clip in clips])
    is_padded = bool((lengths < lengths.max()).any())
    padded = pad_sequence(clips, batch_first=True)
    scores: np.ndarray = classifier.scores(padded, lengths if is_padded else None).numpy()
    if not np.isfinite(scores).all():
        raise ValueError("the classifier's scores are not finite; its training has diverged")
    return scores


def _min_samples(classifier: FineTuned) -> int:
    """Return the number of samples of one patch."""
    return classifier.model.encoder.patch_shape.min_samples
