"""Evaluate frozen features with a linear probe and k-NN (baselines: random weights, mean log-mel).

Embeddings, the mean over time of each layer, are computed once. Held-out training clips select the
layer and the regularisation, in several splits if there are few of them; the test clips are used
once. The baselines, the same network with random weights and the mean log-mel spectrum, are
evaluated in the same way.
"""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

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

from mae_ast.core.io.labels import Labels
from mae_ast.core.io.manifest import Manifest
from mae_ast.core.io.read_ahead import Progress
from mae_ast.evaluate.embeddings import embed, mean_log_mel, mean_of_layers
from mae_ast.hub.load import Pretrained

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)  # scikit-learn's C: smaller is more regularisation
FIRST_STRENGTH = 1e-2  # used to compare layers
DEV_RATIO = 0.2
# Few held-out clips tell layers apart badly, above all if most are right: several splits then.
ENOUGH_DEV_CLIPS, MAX_SPLITS = 500, 5
MAX_ITERATIONS = 200  # weakly regularised fits converge slowly and gain little
NUM_NEAREST = 10  # k of k-NN


@dataclass(frozen=True)
class ProbeData:
    """Labelled clips.

    Args:
        manifest: manifest of R clips.
        targets: (R,) int class of each clip, or (R, C) of 0 and 1 if clips have several classes.
        groups: (R,) group of each clip, such as its speaker; a group is never split.
        labels: the classes.
    """

    manifest: Manifest
    targets: np.ndarray
    groups: np.ndarray
    labels: Labels

    def take(self, rows: Sequence[int] | np.ndarray) -> ProbeData:
        """Select clips by their rows, in this order."""
        manifest = self.manifest.take(rows)
        return ProbeData(manifest, self.targets[rows], self.groups[rows], self.labels)


@dataclass(frozen=True)
class ProbeScore:
    """Test scores of a probe: accuracy, or mean average precision for several labels per clip.

    Args:
        linear: score of the linear probe.
        knn: score of k-NN.
        layer: layer selected on the held-out training clips; 0: the input has no layers.
        strength: C of the logistic regression, selected on the same clips.
        num_clips: number of test clips.
    """

    linear: float
    knn: float
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
        model: model on any device.
        train, test: labelled clips.
        layers: layers to compare, counted from 1; default: all.
        progress: wrapper of the iteration over clips, called once per set of clips and network.

    Returns:
        Scores under "pretrained", "random weights" and "mean log-mel".

    Raises:
        ValueError: no clip of a set can be used, the training clips have one class or one group
            only, or the model's features are not finite.
    """
    check_training_clips(train)  # before anything is embedded
    chosen = list(layers or range(1, model.config.encoder_layers + 1))
    min_samples = model.patch_shape.min_samples
    sets, scores = [train, test], {}
    for name, embedding, compared in (
        ("pretrained", mean_of_layers(model, chosen), chosen),
        ("random weights", mean_of_layers(with_random_weights(model), chosen), chosen),
        ("mean log-mel", mean_log_mel, [0]),
    ):
        with tempfile.TemporaryDirectory() as folder:
            found = []
            for number, part in enumerate(sets):
                path = Path(folder) / f"{number}.npy"
                embedded, used = embed(
                    part.manifest, embedding, min_samples, path, progress=progress
                )
                if len(used) < len(part.targets):  # later passes do not read the skipped clips
                    sets[number] = part.take(used)
                found.append(embedded)
            scores[name] = score(found[0], sets[0], found[1], sets[1], compared)
    return scores


def check_training_clips(train: ProbeData) -> None:
    """Check that a probe can be fitted.

    Raises:
        ValueError: the clips have one class or one group only.
    """
    _splits(train, MAX_SPLITS)


def with_random_weights(model: Pretrained, seed: int = 2203_16691) -> Pretrained:
    """Return the same network with random weights and the model's input statistics."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        fresh = type(model)(model.config, model.mask_type, model.labels)
    fresh.batch_norm.load_state_dict(model.batch_norm.state_dict())
    fresh.precision = model.precision
    device = model.encoder.layer_norm.weight.device
    return fresh.eval().to(device)


def score(
    train: np.ndarray,
    train_data: ProbeData,
    test: np.ndarray,
    test_data: ProbeData,
    layers: Sequence[int],
    max_splits: int = MAX_SPLITS,
) -> ProbeScore:
    """Choose layer and regularisation on held-out parts, refit on all training clips, and test.

    Args:
        train, test: features, (rows, layers, D).
        train_data, test_data: their targets and groups.
        layers: indices of the layers, for ``ProbeScore.layer``.
        max_splits: largest number of splits into training and held-out clips; as many are used as
            hold out ``ENOUGH_DEV_CLIPS`` clips in all.

    Raises:
        ValueError: the training clips have one class or one group only.
    """
    targets = train_data.targets
    splits = _splits(train_data, max_splits)

    @cache
    def on_dev(layer: int, strength: float) -> float:
        features = train[:, layer]
        scores = [
            _measure(
                _linear(targets, strength).fit(features[fit], targets[fit]),
                features[dev],
                targets[dev],
            )
            for fit, dev in splits
        ]
        return sum(scores) / len(scores)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        best = max(range(len(layers)), key=lambda layer: on_dev(layer, FIRST_STRENGTH))
        strength = max(STRENGTHS, key=lambda strength: on_dev(best, strength))
        linear = _linear(targets, strength).fit(train[:, best], targets)
    nearest = make_pipeline(
        StandardScaler(), KNeighborsClassifier(min(NUM_NEAREST, len(targets)), metric="cosine")
    )
    nearest.fit(train[:, best], targets)
    return ProbeScore(
        _measure(linear, test[:, best], test_data.targets),
        _measure(nearest, test[:, best], test_data.targets),
        layers[best],
        strength,
        len(test_data.targets),
    )


def _splits(data: ProbeData, most: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Split rows into training and held-out rows that share no group, up to ``most`` times.

    Raises:
        ValueError: there is one group only, or the rows to fit have one class only.
    """
    where = "the probe" if data.manifest is None else data.manifest.path
    if len(np.unique(data.groups)) < 2:
        raise ValueError(f"{where}: all clips belong to one group; at least 2 groups are needed")
    enough = math.ceil(ENOUGH_DEV_CLIPS / (DEV_RATIO * len(data.targets)))
    splitter = GroupShuffleSplit(min(most, enough), test_size=DEV_RATIO, random_state=0)
    splits = list(splitter.split(data.targets, groups=data.groups))
    usable = [
        (fit, dev) for fit, dev in splits if (data.targets[fit] != data.targets[fit[0]]).any()
    ]
    if not usable:
        raise ValueError(
            f"{where}: the {len(splits[0][0])} of {len(data.groups)} clips that fit the probe all "
            "have the same labels; at least 2 classes are needed"
        )
    return usable


def _linear(targets: np.ndarray, strength: float) -> Pipeline:
    regression = LogisticRegression(C=strength, max_iter=MAX_ITERATIONS, tol=1e-3)
    return make_pipeline(
        StandardScaler(), OneVsRestClassifier(regression) if targets.ndim == 2 else regression
    )


def _measure(probe: Pipeline, features: np.ndarray, targets: np.ndarray) -> float:
    if targets.ndim == 1:
        return float(accuracy_score(targets, probe.predict(features)))
    found = probe.predict_proba(features)
    if isinstance(found, list):  # k-NN returns two columns (0 and 1) per class
        found = np.stack(
            [each[:, -1] if each.shape[1] > 1 else 0 * each[:, 0] for each in found], 1
        )
    known = targets.any(axis=0)
    return float(average_precision_score(targets[:, known], found[:, known], average="macro"))


def rank_me(embeddings: torch.Tensor) -> float:
    """Compute the effective rank of (n, D) embeddings: exp of the singular values' entropy.

    RankMe (Garrido et al. 2023, arXiv 2210.02885) needs no labels: collapsed features lose rank
    even while the loss decreases.
    """
    values = torch.linalg.svdvals(embeddings.float())
    normalized = values / values.sum().clamp(min=1e-12) + 1e-7
    return float(torch.exp(-(normalized * normalized.log()).sum()))
