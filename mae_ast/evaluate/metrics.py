"""Metrics of a classifier, by scikit-learn: scores (R, C), targets (R, C) of 0 and 1."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from sklearn.metrics import average_precision_score, confusion_matrix, roc_auc_score


@dataclass(frozen=True)
class ClassScores:
    """Metrics per class, (C,); NaN for a class that no clip has; AUC also for one that all have.

    Args:
        num_clips: clips that have the class.
        num_pairs: pairs of a clip that has the class and one that has not, which AUC counts.
        average_precision: area below precision over recall.
        auc: area below the receiver's operating curve.
    """

    num_clips: np.ndarray
    num_pairs: np.ndarray
    average_precision: np.ndarray
    auc: np.ndarray


@dataclass(frozen=True)
class Summary:
    """Metrics over all classes.

    Args:
        accuracy: ratio of clips whose highest score is their class's; NaN for several labels.
        mean_average_precision: mean over the classes that occur.
        mean_auc: mean over the classes that have an AUC.
        d_prime: :func:`d_prime` of ``mean_auc``, as in AudioSet's papers.
        num_clips: R.
        num_classes_seen: number of classes that occur.
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
    return ClassScores(num_clips, num_clips * (len(scores) - num_clips), precision, auc)


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
        d_prime(mean_auc, int(per_class.num_pairs.sum())),
        len(scores),
        int((per_class.num_clips > 0).sum()),
    )


def d_prime(auc: float, num_pairs: int) -> float:
    """Return sqrt(2) times the normal quantile of an AUC, always a finite number.

    That is the distance of two normal distributions, in standard deviations, with this AUC. For an
    AUC of 1 it would be infinite; such a class counts as if half a pair were in the wrong order, so
    the result is a lower bound that grows with the number of clips. An AUC of 0 is mirrored.

    Args:
        auc: from 0 to 1; NaN gives NaN.
        num_pairs: pairs of a positive and a negative clip that the AUC was counted from.
    """
    if math.isnan(auc):
        return math.nan
    half_a_pair = 1 / (2 * max(num_pairs, 1))
    return math.sqrt(2) * NormalDist().inv_cdf(min(max(auc, half_a_pair), 1 - half_a_pair))


def confusion(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """(C, C) counts: row the true class, column the one with the highest score."""
    classes = np.arange(scores.shape[1])
    counts: np.ndarray = confusion_matrix(targets.argmax(1), scores.argmax(1), labels=classes)
    return counts


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan
