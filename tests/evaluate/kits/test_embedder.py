"""Embeddings are the mean over layers of the features, however the layers are chosen."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import mae_ast
from mae_ast.evaluate.kits import embedder
from mae_ast.evaluate.kits.embedder import Embedder, parse_layers
from tests.sounds import pcm16, speech_like


def clips(*lengths: int) -> list[Tensor]:
    return [speech_like(length, seed) for seed, length in enumerate(lengths)]


def test_embedding_is_the_mean_of_the_layers(folder):
    model, ours = mae_ast.load(folder), Embedder(folder)
    audio = torch.stack(clips(30_000, 30_000))
    features = model.extract_features(audio)
    steps, times_s = ours.time_steps(audio)
    assert_close(steps, sum(features.time_steps) / 2, rtol=0, atol=1e-5)
    assert_close(times_s, features.times_s, rtol=0, atol=0)
    assert_close(ours.clips(audio), features.pooled.mean(1), rtol=0, atol=1e-5)
    assert steps.shape[2] == ours.width
    assert float(times_s[1] - times_s[0]) * 1000 == pytest.approx(ours.step_ms)


def test_clips_of_any_length_are_embedded_as_alone(folder):
    ours = Embedder(folder, layers=1)
    different = clips(9_000, 170_000, 100)  # longer than a window; shorter than a patch
    found = ours.clips(different)
    for row, clip in zip(found, different, strict=True):
        assert_close(row, ours.clips([clip])[0], rtol=0, atol=1e-5)
        assert_close(row, ours.time_steps(clip[None])[0].mean(1)[0], rtol=0, atol=1e-5)


def test_layers_by_argument_and_environment(folders, monkeypatch):
    folder, (clip,) = folders["mae_ast patch"], clips(20_000)
    pooled = mae_ast.load(folder).extract_features(clip).pooled[0]
    for chosen in (2, "2", [2], "-1"):
        assert_close(Embedder(folder, chosen).clips([clip])[0], pooled[1], rtol=0, atol=1e-5)
    monkeypatch.setenv("MAE_AST_LAYERS", "1")
    monkeypatch.setenv("MAE_AST_MODEL", folder)
    assert_close(Embedder().clips([clip])[0], pooled[0], rtol=0, atol=1e-5)
    assert Embedder(folders["ast"], "all").layers == (1, 2)


@pytest.mark.parametrize("layers", ["3", "0", "", "6;9", "last", [], "1,3"])
def test_layers_that_do_not_exist_are_named(layers):
    with pytest.raises(ValueError, match=r"^layers .* must be 'all' or numbers from 1 to 2, such"):
        parse_layers(layers, 2)


def test_samples_are_clipped_and_int16_is_scaled(folders):
    ours, (clip,) = Embedder(folders["mae_ast frame"]), clips(8_000)
    loud = 5 * clip
    assert_close(ours.clips([loud]), ours.clips([loud.clamp(-1, 1)]), rtol=0, atol=0)
    assert_close(ours.clips([pcm16(clip)]), ours.clips([clip]), rtol=0, atol=0.02)


def test_memory_of_all_layers_is_bounded_by_splitting_the_batch(folders, monkeypatch):
    ours, audio = Embedder(folders["ssast patch"]), torch.stack(clips(*[16_000] * 5))
    expected, _ = ours.time_steps(audio)
    sizes = []

    def extract(model, some, **options):
        sizes.append(len(some))
        return mae_ast.core.inference.features.extract_features(model, some, **options)

    monkeypatch.setattr(embedder, "BATCH_S", 2.0)
    monkeypatch.setattr(embedder, "extract_features", extract)
    assert_close(ours.time_steps(audio)[0], expected, rtol=0, atol=1e-5)
    assert sizes == [2, 2, 1]
