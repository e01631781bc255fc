"""Test the probe: scores on informative and random features, splits by group, RankMe."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import soundfile
import torch

from mae_ast.core.io.labels import Labels
from mae_ast.core.io.manifest import Manifest, write_manifest
from mae_ast.evaluate import embeddings
from mae_ast.evaluate import probe as probing
from mae_ast.evaluate.embeddings import embed, mean_log_mel, mean_of_layers
from mae_ast.evaluate.probe import ProbeData, probe, rank_me, score, with_random_weights
from mae_ast.hub.load import PretrainedMaeAst

CLASSES = 4
LABELS = Labels(tuple("abcd"), tuple("abcd"))


@pytest.fixture(scope="module")
def pitches(tmp_path_factory) -> tuple[ProbeData, ProbeData]:
    """Write tones of four pitches at random levels: 80 training and 24 test clips."""
    folder = tmp_path_factory.mktemp("tones")
    rng = np.random.default_rng(0)
    parts = []
    for split, count in (("train", 80), ("test", 24)):
        targets = np.arange(count) % CLASSES
        rows = []
        for number, target in enumerate(targets):
            time = np.arange(8_000) / 16_000
            tone = np.sin(2 * np.pi * 200 * 2**target * time + rng.uniform(0, 6))
            wave = rng.uniform(0.01, 0.5) * (tone + 0.1 * rng.standard_normal(8_000))
            soundfile.write(folder / f"{split}{number}.wav", wave * 0.5, 16_000, subtype="PCM_16")
            rows.append((f"{split}{number}.wav", 8_000, 16_000))
        write_manifest(folder / f"{split}.tsv", ".", rows)
        groups = np.arange(count) // 4
        parts.append(ProbeData(Manifest.read(folder / f"{split}.tsv"), targets, groups, LABELS))
    return parts[0], parts[1]


@pytest.fixture
def model(small_config) -> PretrainedMaeAst:
    model = PretrainedMaeAst(small_config(), "random_mask").eval()
    model.batch_norm.running_mean.fill_(-7.0)
    model.batch_norm.running_var.fill_(16.0)
    return model


def test_scores_the_model_and_two_baselines(model, pitches):
    train, test = pitches
    scores = probe(model, train, test)
    assert list(scores) == ["pretrained", "random weights", "mean log-mel"]
    assert scores["mean log-mel"].linear > 0.9
    assert scores["mean log-mel"].layer == 0
    for found in scores.values():
        assert 1 / CLASSES < found.linear <= 1
        assert 1 / CLASSES < found.knn <= 1
        assert found.strength in probing.STRENGTHS
    assert scores["pretrained"].layer in (1, 2)


@pytest.mark.parametrize("file", [None, "a.npy"])
def test_embeddings_are_means_over_time(model, pitches, tmp_path, monkeypatch, file):
    manifest = pitches[1].manifest
    few = partial(embeddings.for_each_batch, batch_samples=7 * 8_000)
    monkeypatch.setattr(embeddings, "for_each_batch", few)
    path = None if file is None else tmp_path / file
    found, used = embed(manifest, mean_of_layers(model, [2, 1]), 400, path)
    assert used == list(range(len(manifest)))
    assert found.shape == (24, 2, 8 * 32)
    alone = model.extract_features(manifest.audio_path(9))
    assert np.allclose(found[9, 0], alone.time_steps[1][0].mean(0).numpy(), atol=1e-5)
    assert np.allclose(found[9, 1], alone.time_steps[0][0].mean(0).numpy(), atol=1e-5)


def test_mean_log_mel_separates_pitches(pitches):
    manifest = pitches[0].manifest
    means, _ = embed(manifest, mean_log_mel, 400)
    peaks = means[:, 0].argmax(1)
    by_class = [peaks[pitches[0].targets == c] for c in range(CLASSES)]
    assert all(one.max() < other.min() for one, other in pairwise(by_class))


def test_random_weights_keep_config_and_input_statistics(model):
    fresh = with_random_weights(model)
    assert fresh.config == model.config
    assert fresh.batch_norm.running_mean == model.batch_norm.running_mean
    assert not torch.equal(fresh.post_extract_proj.weight, model.post_extract_proj.weight)
    again = with_random_weights(model)
    assert torch.equal(fresh.post_extract_proj.weight, again.post_extract_proj.weight)


def features(rows: int, targets: np.ndarray, noise: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    points = np.random.default_rng(9).standard_normal((CLASSES, 16))
    return (points[targets] + noise * rng.standard_normal((rows, 16))).astype(np.float32)


def data(targets: np.ndarray) -> ProbeData:
    return ProbeData(None, targets, np.arange(len(targets)) // 5, LABELS)


def test_training_clips_select_the_informative_layer():
    targets, others = np.arange(200) % CLASSES, np.arange(100) % CLASSES
    noise = np.random.default_rng(5).standard_normal
    train = np.stack([noise((200, 16)), features(200, targets, 0.5, 1)], 1)
    test = np.stack([noise((100, 16)), features(100, others, 0.5, 2)], 1)
    found = score(train, data(targets), test, data(others), [3, 7])
    assert found.layer == 7
    assert found.linear > 0.95
    assert found.knn > 0.95


def test_random_labels_score_at_chance_level():
    rng = np.random.default_rng(0)
    targets, others = rng.integers(CLASSES, size=400), rng.integers(CLASSES, size=400)
    train = rng.standard_normal((400, 1, 16))
    test = rng.standard_normal((400, 1, 16))
    found = score(train, data(targets), test, data(others), [1])
    assert found.linear == pytest.approx(1 / CLASSES, abs=0.08)
    assert found.knn == pytest.approx(1 / CLASSES, abs=0.08)


def test_several_labels_per_clip_give_mean_average_precision():
    rng = np.random.default_rng(0)
    targets = (rng.uniform(size=(300, 3)) < 0.3).astype(np.int64)
    mixing = rng.standard_normal((3, 16))
    train = (targets @ mixing + 0.1 * rng.standard_normal((300, 16)))[:, None]
    found = score(train, data(targets), train, data(targets), [1])
    assert found.linear > 0.99
    assert found.knn > 0.9


def test_groups_stay_together(monkeypatch):
    """The held-out rows share no group with the training rows."""
    seen = []
    measure = probing._measure

    def spy(found, chosen, targets):
        seen.append(set(chosen[:, 0].round().astype(int)))
        return measure(found, chosen, targets)

    monkeypatch.setattr(probing, "_measure", spy)
    groups = np.repeat(np.arange(20), 10)
    targets = np.arange(200) % CLASSES
    train = np.stack([groups, *np.random.default_rng(0).standard_normal((3, 200))], 1)[:, None]
    data = ProbeData(None, targets, groups, LABELS)
    score(train, data, train, data, [1])
    parts = seen[: probing.MAX_SPLITS]
    assert all(len(part) == 4 for part in parts)
    assert len({frozenset(part) for part in parts}) == probing.MAX_SPLITS
    # the same parts for each strength; that of the first is known; then the two test scores
    assert seen[:-2] == parts * len(probing.STRENGTHS)
    seen.clear()
    score(train, data, train, data, [1], max_splits=1)
    assert seen[:-2] == parts[:1] * len(probing.STRENGTHS)


@pytest.mark.parametrize(("count", "splits"), [(200, 5), (1000, 3), (2500, 1), (5000, 1)])
def test_few_clips_are_split_several_times(count, splits):
    data = ProbeData(None, np.arange(count) % CLASSES, np.arange(count), LABELS)
    found = probing._splits(data, probing.MAX_SPLITS)
    assert len(found) == splits
    assert all(len(dev) == count // 5 for _, dev in found)


@pytest.mark.parametrize("rank", [1, 5, 32])
def test_rank_me_of_orthogonal_directions_is_their_number(rank):
    basis = torch.linalg.qr(torch.randn(64, rank))[0]
    weights = torch.linalg.qr(torch.randn(500, rank))[0]
    assert rank_me(weights @ basis.T) == pytest.approx(rank, rel=0.01)


def test_rank_me_is_exp_of_the_singular_values_entropy():
    values = torch.tensor([4.0, 3.0, 1.0])
    embeddings = torch.diag(values)
    normalized = values / values.sum()
    expected = math.exp(-(normalized * normalized.log()).sum())
    assert rank_me(embeddings) == pytest.approx(expected, rel=1e-3)
