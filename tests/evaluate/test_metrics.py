"""Test metrics against scikit-learn, also for scores that are accumulated in batches."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, average_precision_score, roc_auc_score

from mae_ast.criterions.score_meter import ScoreMeter
from mae_ast.evaluate.metrics import class_scores, confusion, d_prime, summarise


def drawn(clips: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw random scores and multi-label targets; each class has positive and negative clips."""
    rng = np.random.default_rng(seed)
    targets = (rng.random((clips, classes)) < 0.3).astype(np.float32)
    targets[0], targets[1] = 1, 0
    scores = rng.random((clips, classes)).astype(np.float32) + 0.3 * targets
    return scores, targets


def test_accumulated_batches_equal_scikit_learn_on_all_clips() -> None:
    scores, targets = drawn(60, 7)
    meter = ScoreMeter()
    ids = torch.randperm(60)
    for part in (ids[:41], ids[41:], ids[:5]):  # clips repeat, as in a padded epoch
        meter.update(part, torch.from_numpy(scores)[part], torch.from_numpy(targets)[part])
    found = meter.summary()
    precision = average_precision_score(targets, scores, average=None)
    auc = roc_auc_score(targets, scores, average=None)
    assert found.num_clips == 60
    assert found.mean_average_precision == pytest.approx(precision.mean())
    assert found.mean_auc == pytest.approx(auc.mean())
    per_class = class_scores(scores, targets)
    np.testing.assert_allclose(per_class.average_precision, precision)
    np.testing.assert_allclose(per_class.auc, auc)

    one = np.eye(7, dtype=np.float32)[np.arange(60) % 7]
    meter = ScoreMeter()
    for rows in (slice(0, 33), slice(33, 60)):
        meter.update(
            torch.arange(60)[rows], torch.from_numpy(scores[rows]), torch.from_numpy(one[rows])
        )
    wanted = accuracy_score(one.argmax(1), scores.argmax(1))
    assert meter.accuracy() == pytest.approx(wanted)
    assert summarise(scores, one, multi_label=False).accuracy == pytest.approx(wanted)


def test_d_prime_of_known_aucs() -> None:
    assert d_prime(0.5, 10_000) == pytest.approx(0)
    # The AudioSet papers give a d-prime of 2.68 for an AUC of 0.971.
    assert d_prime(0.971, 10_000) == pytest.approx(2.68, abs=0.005)
    assert math.isnan(d_prime(math.nan, 0))


def test_d_prime_of_perfect_classes_is_finite() -> None:
    # 40 clips of a class among 2000: an AUC of 1 - 1 / (2 * 40 * 1960).
    assert d_prime(1.0, 40 * 1960) == pytest.approx(6.172, abs=0.001)
    assert d_prime(0.0, 40 * 1960) == pytest.approx(-d_prime(1.0, 40 * 1960))
    one_pair_wrong = 1 - 1 / (40 * 1960)
    assert 5.9 < d_prime(one_pair_wrong, 40 * 1960) < d_prime(1.0, 40 * 1960)

    targets = np.eye(3)[np.arange(12) % 3]
    perfect = class_scores(targets, targets)
    assert perfect.auc.tolist() == [1, 1, 1]
    assert perfect.num_pairs.tolist() == [32, 32, 32]
    summary = summarise(targets, targets, multi_label=True, classes=perfect)
    assert (summary.mean_auc, summary.mean_average_precision) == (1, 1)
    assert summary.d_prime == pytest.approx(3.63, abs=0.01)  # an AUC of 1 - 1 / 192
    worst = summarise(1 - targets, targets, multi_label=True)
    assert worst.d_prime == pytest.approx(-summary.d_prime)


def test_classes_without_clips_are_ignored() -> None:
    scores, targets = drawn(40, 4)
    targets[:, 2] = 0
    found = class_scores(scores, targets)
    assert np.isnan(found.average_precision[2])
    assert np.isnan(found.auc[2])
    summary = summarise(scores, targets, multi_label=True)
    assert summary.num_classes_seen == 3
    assert summary.mean_auc == pytest.approx(found.auc[[0, 1, 3]].mean())
    assert math.isnan(summary.accuracy)


def test_metrics_of_non_finite_scores_are_nan() -> None:
    scores, targets = drawn(10, 3)
    scores[3, 1] = math.nan
    summary = summarise(scores, targets, multi_label=True)
    assert math.isnan(summary.mean_average_precision)
    assert math.isnan(summary.mean_auc)


def test_confusion_counts_clips_by_true_and_predicted_class() -> None:
    scores = np.array([[3, 1, 0], [0, 2, 1], [5, 2, 1]], dtype=np.float32)
    targets = np.eye(3, dtype=np.float32)[[0, 1, 1]]
    assert confusion(scores, targets).tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 0]]
