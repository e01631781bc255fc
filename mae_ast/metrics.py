"""How good a classifier's scores are, by scikit-learn: scores (R, C), targets (R, C) of 0 and 1."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from sklearn.metrics import average_precision_score, confusion_matrix, roc_auc_score


@dataclass(frozen=True)
class ClassScores:
    """Per class (C,); NaN where a class has no clip, or all have it (then only AUC is NaN).

    Args:
        num_clips: that have the class.
        average_precision: area below precision over recall.
        auc: area below the receiver's operating curve.
    """

    num_clips: np.ndarray
    average_precision: np.ndarray
    auc: np.ndarray


@dataclass(frozen=True)
class Summary:
    """Over all classes.

    Args:
        accuracy: share of clips whose highest score is their class's; NaN for several labels.
        mean_average_precision: over the classes that occur.
        mean_auc: likewise.
        d_prime: sqrt(2) times the normal quantile of ``mean_auc``, as AudioSet's papers have it.
        num_clips: R.
        num_classes_seen: classes that occur.
    """

    accuracy: float
    mean_average_precision: float
    mean_auc: float
    d_prime: float
    num_clips: int
    num_classes_seen: int


def class_scores(scores: np.ndarray, targets: np.ndarray) -> ClassScores:
    """Average precision and AUC of each class."""
    is_own = targets > 0.5
    num_clips = is_own.sum(0)
    num_classes = scores.shape[1]
    precision, auc = np.full(num_classes, np.nan), np.full(num_classes, np.nan)
    for c in np.flatnonzero(num_clips):
        precision[c] = average_precision_score(is_own[:, c], scores[:, c])
        if num_clips[c] < len(scores):
            auc[c] = roc_auc_score(is_own[:, c], scores[:, c])
    return ClassScores(num_clips, precision, auc)


def accuracy(scores: np.ndarray, targets: np.ndarray) -> float:
    """Share of clips whose highest score is their class's."""
    return float((scores.argmax(1) == targets.argmax(1)).mean()) if len(scores) else math.nan


def summarise(
    scores: np.ndarray, targets: np.ndarray, multi_label: bool, classes: ClassScores | None = None
) -> Summary:
    """All figures; NaN where scores are not finite.

    Args:
        scores, targets: (R, C).
        multi_label: clips may have several classes: no accuracy.
        classes: of the same scores, where they are there already.
    """
    if not np.isfinite(scores).all():
        scores, targets, classes = scores[:0], targets[:0], None
    per_class = classes or class_scores(scores, targets)
    mean_auc = _mean(per_class.auc)
    return Summary(
        math.nan if multi_label else accuracy(scores, targets),
        _mean(per_class.average_precision),
        mean_auc,
        d_prime(mean_auc),
        len(scores),
        int((per_class.num_clips > 0).sum()),
    )


def d_prime(auc: float) -> float:
    """The distance of two normal distributions, in deviations, that give this AUC."""
    if not 0 < auc < 1:
        return math.nan if math.isnan(auc) else math.copysign(math.inf, auc - 0.5)
    return math.sqrt(2) * NormalDist().inv_cdf(auc)


def confusion(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """(C, C) counts: row the true class, column the one with the highest score."""
    classes = np.arange(scores.shape[1])
    counts: np.ndarray = confusion_matrix(targets.argmax(1), scores.argmax(1), labels=classes)
    return counts


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan
