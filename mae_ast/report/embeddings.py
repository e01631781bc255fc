"""Embeddings of labelled validation clips in two dimensions: (R, D) -> (R, 2) points.

An embedding is the mean over time of one layer: for a pretrained model the layer that its probe
chose last, else the last one. Points are principal components of the standardised embeddings, and
t-SNE of them.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mae_ast.core.io.audio import SAMPLE_RATE
from mae_ast.core.io.labels import LABELS_FILE
from mae_ast.core.io.manifest import evenly_spaced
from mae_ast.evaluate.embeddings import embed, mean_of_layers
from mae_ast.evaluate.probe import ProbeData
from mae_ast.evaluate.probe_data import read_labelled
from mae_ast.evaluate.read_clips import read_or_skip
from mae_ast.hub.load import load
from mae_ast.report.collect import Run
from mae_ast.report.sounds import Sounds, as_float, gain_of

MAX_CLIPS = 240  # points of a run
MAX_EMBEDDED_S = 10.0  # longer clips are embedded by their beginning
CLIP_S, ALL_CLIPS_S = 2.0, 300.0  # sound of a clip, and of all clips of a page
MIN_FOR_TSNE = 12
WHAT = "embeddings"  # in notes
SPLIT = "valid"

Shown = dict[str, Any]


def embeddings(
    runs: Sequence[Run], labelled: Path | None, device: str, sounds: Sounds
) -> list[Shown]:
    """Embed labelled clips.

    Args:
        runs: the runs; what is missing is noted in them.
        labelled: folder of ``labels.csv``, ``valid.tsv`` and ``valid.lbl``; ``None``: that of the
            run's probe, or of its data.
        device: device of the models.
        sounds: sounds of the page.

    Returns:
        For each run its number ``run``, ``layer``, ``labels`` (names), ``names`` of clips,
        ``classes`` (numbers of the first label of each clip), ``texts`` (all labels), ``sounds``
        (numbers, or None), ``pca`` and ``tsne`` (points, or None), and ``explained``, the fraction
        of the variance in the two components.
    """
    found = []
    clip_sounds = _ClipSounds(sounds)
    for number, run in enumerate(runs):
        if run.checkpoint is None:
            continue
        try:
            folder = labelled or labelled_folder(run)
            if folder is None:
                run.note(WHAT, "no labelled validation clips; --labels names a folder of them")
                continue
            found.append({"run": number, **_embedded(run, folder, device, clip_sounds)})
        except (ValueError, OSError) as error:
            run.note(WHAT, error)
    return found


def labelled_folder(run: Run) -> Path | None:
    """Return the folder of a run's labelled clips; ``None`` if there is none."""
    folders = list(run.data)
    if probe_data := run.setting("task", "probe_data"):
        folders.insert(0, Path(str(probe_data)))
    for folder in folders:
        if (folder / f"{SPLIT}.lbl").is_file() and (folder / LABELS_FILE).is_file():
            return folder
    return None


def layer_of(run: Run, num_layers: int) -> int:
    """Return the layer that the run's probe chose last; without a probe, the last layer."""
    chosen = [line["layer"] for line in run.lines if isinstance(line.get("layer"), int)]
    return min(max(chosen[-1], 1), num_layers) if chosen else num_layers


def principal_components(features: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the first two components, (R, 2), and their fraction of the variance."""
    centered = features - features.mean(0)
    left, strengths, _ = np.linalg.svd(centered, full_matrices=False)
    points = np.zeros((len(features), 2))
    points[:, : min(2, len(strengths))] = left[:, :2] * strengths[:2]
    total = float((strengths**2).sum())
    return points, float((strengths[:2] ** 2).sum()) / total if total else 0.0


def standardized(features: np.ndarray) -> np.ndarray:
    """Return features with mean 0 and std 1; constant ones are 0."""
    std = features.std(0)
    return np.asarray((features - features.mean(0)) / np.where(std > 0, std, 1.0))


class _ClipSounds:
    """Sounds of labelled clips, up to a total length."""

    def __init__(self, sounds: Sounds) -> None:
        self._sounds = sounds
        self._used_s = 0.0
        self._known: dict[str, int | None] = {}

    def add(self, data: ProbeData, row: int) -> int | None:
        """Return the number of a clip's sound; ``None`` if the page has enough."""
        segment = str(data.manifest.segment(row))
        if segment not in self._known:
            self._known[segment] = self._new(data, row)
        return self._known[segment]

    def _new(self, data: ProbeData, row: int) -> int | None:
        if self._used_s >= ALL_CLIPS_S:
            return None
        samples = read_or_skip(data.manifest, row, 1, round(CLIP_S * SAMPLE_RATE), logging.DEBUG)
        if samples is None:
            return None
        self._used_s += len(samples) / SAMPLE_RATE
        return self._sounds.add(as_float(samples) * gain_of(samples))


def _embedded(run: Run, folder: Path, device: str, clip_sounds: _ClipSounds) -> Shown:
    assert run.checkpoint is not None
    data = read_labelled(folder / f"{SPLIT}.tsv")
    data = data.take(evenly_spaced(len(data.targets), MAX_CLIPS))
    model = load(run.checkpoint).to(device)
    layer = layer_of(run, model.config.encoder_layers)
    features, kept = embed(
        data.manifest,
        mean_of_layers(model, [layer]),
        model.patch_shape.min_samples,
        max_samples=round(MAX_EMBEDDED_S * SAMPLE_RATE),
        level=logging.DEBUG,
    )
    data = data.take(kept)
    values = standardized(features[:, 0].astype(np.float64))
    points, explained = principal_components(values)
    classes, texts = _labels_of(data)
    return {
        "layer": layer,
        "labels": list(data.labels.names),
        "names": [Path(data.manifest.row_path(row)).name for row in range(len(kept))],
        "classes": classes,
        "texts": texts,
        "sounds": [clip_sounds.add(data, row) for row in range(len(kept))],
        "pca": points.round(3).tolist(),
        "tsne": _tsne(values),
        "explained": explained,
    }


def _labels_of(data: ProbeData) -> tuple[list[int], list[str]]:
    """Return the first label of each clip, and all of its labels as a text."""
    names = data.labels.names
    if data.targets.ndim == 1:
        return data.targets.tolist(), [names[label] for label in data.targets.tolist()]
    rows = [np.flatnonzero(row).tolist() for row in data.targets]
    return [row[0] if row else 0 for row in rows], [
        ", ".join(names[label] for label in row) for row in rows
    ]


def _tsne(values: np.ndarray) -> list[list[float]] | None:
    if len(values) < MIN_FOR_TSNE:
        return None
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(values) - 1) / 3)
    fitted = TSNE(2, perplexity=perplexity, init="pca", random_state=0).fit_transform(values)
    points: list[list[float]] = np.asarray(fitted, np.float64).round(3).tolist()
    return points
