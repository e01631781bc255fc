"""Classification metrics; scores (R, C), targets (R, C) of 0 and 1."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np


@dataclass(frozen=True)
class ClassScores:
    """Metrics per class, (C,); NaN for a class without clips, and AUC for one that all clips have.

    Args:
        num_clips: number of positive clips.
        num_pairs: number of pairs of a positive and a negative clip.
        average_precision: area under the precision-recall curve.
        auc: area under the receiver operating characteristic (ROC) curve.
    """

    num_clips: np.ndarray
    num_pairs: np.ndarray
    average_precision: np.ndarray
    auc: np.ndarray


@dataclass(frozen=True)
class Summary:
    """Metrics over all classes.

    Args:
        accuracy: fraction of clips whose highest score is their class's; NaN for multi-label.
        mean_average_precision: mean over the classes that occur.
        mean_auc: mean over the classes that have an AUC.
        d_prime: :func:`d_prime` of ``mean_auc``, as in the AudioSet papers.
        num_clips: number of clips, R.
        num_classes_seen: number of classes that occur.
    """

    accuracy: float
    mean_average_precision: float
    mean_auc: float
    d_prime: float
    num_clips: int
    num_classes_seen: int


def class_scores(scores: np.ndarray, targets: np.ndarray) -> ClassScores:
    """Compute average precision and AUC of each class."""
    # Slow to import, and no pretraining needs it, although this module is among its imports.
    from sklearn.metrics import average_precision_score, roc_auc_score

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
    """Compute the fraction of clips whose highest score is their class's."""
    return float((scores.argmax(1) == targets.argmax(1)).mean()) if len(scores) else math.nan


def summarise(
    scores: np.ndarray, targets: np.ndarray, multi_label: bool, classes: ClassScores | None = None
) -> Summary:
    """Compute all metrics; they are NaN if scores are not finite.

    Args:
        scores, targets: (R, C).
        multi_label: clips may have several classes; accuracy is NaN.
        classes: metrics per class of the same scores, if they have been computed already.
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

    This is the distance between the means of two normal distributions of unit variance that have
    this AUC. It would be infinite for an AUC of 1; half a pair is then counted as misordered, so
    that the result is a lower bound that grows with the number of clips. An AUC of 0 is treated
    symmetrically.

    Args:
        auc: AUC from 0 to 1; NaN gives NaN.
        num_pairs: number of pairs of a positive and a negative clip that define the AUC.
    """
    if math.isnan(auc):
        return math.nan
    half_a_pair = 1 / (2 * max(num_pairs, 1))
    return math.sqrt(2) * NormalDist().inv_cdf(min(max(auc, half_a_pair), 1 - half_a_pair))


def confusion(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Count clips by class, (C, C): row the true class, column that of the highest score."""
    counts = np.zeros((scores.shape[1], scores.shape[1]), dtype=np.int64)
    np.add.at(counts, (targets.argmax(1), scores.argmax(1)), 1)
    return counts


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan
