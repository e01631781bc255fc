"""What a frozen model's features are worth: a linear probe and nearest neighbours on each layer.

Embeddings are computed once, the mean over time of each layer. A part of the training clips chooses
layer and regularisation; the test clips are looked at once. Two baselines go through the same: the
same network with random weights, and mean log-mel.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, average_precision_score
from sklearn.model_selection import GroupShuffleSplit
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from mae_ast.core.frontend.fbank import fbank
from mae_ast.core.io.audio import read_long_audio
from mae_ast.core.io.labels import Labels
from mae_ast.core.io.manifest import Manifest, Progress
from mae_ast.core.io.plural import plural
from mae_ast.evaluate.read_clips import read_or_skip
from mae_ast.hub.load import Pretrained

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)  # C of scikit-learn: the weaker, the more regularisation
FIRST_STRENGTH = 1e-3  # with which layers are compared
DEV_SHARE = 0.2
MAX_ITERATIONS = 200  # weakly regularised fits go on for long and change little
NEIGHBOURS = 10
BATCH_CLIPS = 32


@dataclass(frozen=True)
class ProbeData:
    """Clips with labels.

    Args:
        manifest: the clips.
        targets: (R,) int class of each clip, or (R, C) 0 or 1 where a clip has several.
        groups: (R,) speaker (or whatever must not be on both sides) of each clip.
        labels: the classes.
    """

    manifest: Manifest
    targets: np.ndarray
    groups: np.ndarray
    labels: Labels

    def take(self, rows: Sequence[int] | np.ndarray) -> ProbeData:
        """Some of the clips, in this order."""
        manifest = self.manifest.take(rows)
        return ProbeData(manifest, self.targets[rows], self.groups[rows], self.labels)


@dataclass(frozen=True)
class ProbeScore:
    """What was reached.

    Args:
        linear: on the test clips: accuracy, or mean average precision of several labels a clip.
        neighbours: the same by the nearest neighbours.
        layer: that was best on the held-out part; 0: there are no layers.
        strength: likewise, C of the logistic regression.
        num_clips: that it was tested on.
    """

    linear: float
    neighbours: float
    layer: int
    strength: float
    num_clips: int


def probe(
    model: Pretrained,
    train: ProbeData,
    test: ProbeData,
    layers: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> dict[str, ProbeScore]:
    """Score a model and the two baselines; unusable clips are logged and skipped.

    Args:
        model: on any device.
        train, test: labelled clips.
        layers: counted from 1; default: all.
        progress: wraps the iteration over clips, once for each set of clips and each network.

    Returns:
        By "pretrained", "random weights" and "mean log-mel".

    Raises:
        ValueError: no clip of one set can be used, the training clips have one class or one group
            only, or the model's features are not finite.
    """
    _split(train)  # refuses before anything is embedded
    chosen = list(layers or range(1, model.config.encoder_layers + 1))
    sets, scores = [train, test], {}
    for name, network in (("pretrained", model), ("random weights", with_random_weights(model))):
        with tempfile.TemporaryDirectory() as folder:
            embedded = []
            for number, part in enumerate(sets):
                path = Path(folder) / f"{number}.npy"
                found, used = embed(network, part.manifest, chosen, path, progress)
                if len(used) < len(found):  # those that come next do not read the others again
                    sets[number], found = part.take(used), found[used]
                embedded.append(found)
            scores[name] = score(embedded[0], sets[0], embedded[1], sets[1], chosen)
    log_mel = [mean_log_mel(part.manifest, progress)[:, None] for part in sets]
    scores["mean log-mel"] = score(log_mel[0], sets[0], log_mel[1], sets[1], [0])
    return scores


def embed(
    model: Pretrained,
    manifest: Manifest,
    layers: Sequence[int],
    path: Path,
    progress: Progress | None = None,
) -> tuple[np.ndarray, list[int]]:
    """Means over time of layers, (rows, layers, C D) float32, memory-mapped from ``path``.

    Returns:
        They, and the rows of clips that could be used; the others were logged, and are 0.

    Raises:
        ValueError: none could be used, or features are not finite.
    """
    width = model.patch_shape.per_column * model.config.encoder_embed_dim
    shape = (len(manifest), len(layers), width)
    found = np.lib.format.open_memmap(path, "w+", np.float32, shape)
    starts = range(0, len(manifest), BATCH_CLIPS)
    used: list[int] = []
    for start in starts if progress is None else progress(starts, len(starts)):
        rows = range(start, min(start + BATCH_CLIPS, len(manifest)))
        read = {row: read_or_skip(manifest, row, model.patch_shape.min_samples) for row in rows}
        clips = {row: clip for row, clip in read.items() if clip is not None}
        if not clips:
            continue
        features = model.extract_features(
            list(clips.values()), layers=list(layers), pooled_only=True
        )
        if not features.pooled.isfinite().all():
            raise ValueError("the model's features are not finite; its training has diverged")
        found[list(clips)] = features.pooled.numpy()
        used += clips
    if not used:
        raise ValueError(
            f"{manifest.path}: none of {plural(len(manifest), 'clip')} can be used; see above"
        )
    return found, used


def mean_log_mel(manifest: Manifest, progress: Progress | None = None) -> np.ndarray:
    """Each clip's mean log-mel, (rows, 128) float32."""
    rows = range(len(manifest))
    return np.stack(
        [
            fbank(read_long_audio(manifest.audio_path(row))[None])[0].mean(0).numpy()
            for row in (rows if progress is None else progress(rows, len(rows)))
        ]
    )


def with_random_weights(model: Pretrained, seed: int = 2203_16691) -> Pretrained:
    """The same network, untrained; the input is normalised alike."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        fresh = type(model)(model.config, model.mask_type, model.labels)
    fresh.batch_norm.load_state_dict(model.batch_norm.state_dict())
    fresh.precision = model.precision
    device = model.post_extract_proj.weight.device
    return fresh.eval().to(device)


def score(
    train: np.ndarray,
    train_data: ProbeData,
    test: np.ndarray,
    test_data: ProbeData,
    layers: Sequence[int],
) -> ProbeScore:
    """Choose layer and regularisation on a held-out part, refit on all training clips, and test.

    Args:
        train, test: (rows, layers, D) features.
        train_data, test_data: their targets and groups.
        layers: names of the layers.

    Raises:
        ValueError: the training clips have one class or one group only.
    """
    targets = train_data.targets
    fit, dev = _split(train_data)

    def on_dev(layer: int, strength: float) -> float:
        features = train[:, layer]
        probe = _linear(targets, strength).fit(features[fit], targets[fit])
        return _measure(probe, features[dev], targets[dev])

    best = max(range(len(layers)), key=lambda layer: on_dev(layer, FIRST_STRENGTH))
    strength = max(STRENGTHS, key=lambda strength: on_dev(best, strength))
    linear = _linear(targets, strength).fit(train[:, best], targets)
    nearest = make_pipeline(
        StandardScaler(), KNeighborsClassifier(min(NEIGHBOURS, len(targets)), metric="cosine")
    )
    nearest.fit(train[:, best], targets)
    return ProbeScore(
        _measure(linear, test[:, best], test_data.targets),
        _measure(nearest, test[:, best], test_data.targets),
        layers[best],
        strength,
        len(test_data.targets),
    )


def _split(data: ProbeData) -> tuple[np.ndarray, np.ndarray]:
    """Split rows into training and held-out rows that share no group.

    Raises:
        ValueError: there is one group only, or the rows to fit have one class only.
    """
    where = "the probe" if data.manifest is None else data.manifest.path
    if len(np.unique(data.groups)) < 2:
        raise ValueError(
            f"{where}: all clips are of one group (--group); at least 2 are needed, to hold one out"
        )
    splits = GroupShuffleSplit(1, test_size=DEV_SHARE, random_state=0)
    fit, dev = next(splits.split(data.targets, groups=data.groups))
    if not (data.targets[fit] != data.targets[fit[0]]).any():
        raise ValueError(
            f"{where}: the {len(fit)} of {len(data.groups)} clips a probe is fitted to all have "
            "the same labels; at least 2 classes are needed"
        )
    return fit, dev


class _Regression(LogisticRegression):  # type: ignore[misc]
    """Logistic regression that may stop early: weakly regularised fits gain little from more."""

    def fit(self, *arguments: Any, **options: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            return super().fit(*arguments, **options)


def _linear(targets: np.ndarray, strength: float) -> Pipeline:
    regression = _Regression(C=strength, max_iter=MAX_ITERATIONS, tol=1e-3)
    return make_pipeline(
        StandardScaler(), OneVsRestClassifier(regression) if targets.ndim == 2 else regression
    )


def _measure(probe: Pipeline, features: np.ndarray, targets: np.ndarray) -> float:
    if targets.ndim == 1:
        return float(accuracy_score(targets, probe.predict(features)))
    found = probe.predict_proba(features)
    if isinstance(found, list):  # nearest neighbours: a pair of columns a class
        found = np.stack(
            [each[:, -1] if each.shape[1] > 1 else 0 * each[:, 0] for each in found], 1
        )
    known = targets.any(axis=0)
    return float(average_precision_score(targets[:, known], found[:, known], average="macro"))


def rank_me(embeddings: torch.Tensor) -> float:
    """Effective rank of (n, D) embeddings: e to the entropy of their singular values.

    RankMe (Garrido et al. 2023, arXiv 2210.02885): features that collapse lose rank, whatever the
    loss says; it needs no labels.
    """
    values = torch.linalg.svdvals(embeddings.float())
    shares = values / values.sum().clamp(min=1e-12) + 1e-7
    return float(torch.exp(-(shares * shares.log()).sum()))
