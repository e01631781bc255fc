"""Measures of a run: times and memory from its lines, masked prediction alike for all models."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from mae_ast.core.io.manifest import Manifest, write_manifest
from mae_ast.core.models.config import AudioMaeConfig, MaeAstConfig, SsastConfig
from mae_ast.evaluate.masked_prediction import masked_scores
from mae_ast.hub.load import PretrainedAudioMae, PretrainedMaeAst, PretrainedSsast
from mae_ast.study.measure_names import MEASURES, heading, measure_of
from mae_ast.study.measures import _costs, updates_to
from mae_ast.trainer.metrics_log import METRICS_FILE

SMALL = {
    "encoder_layers": 1,
    "encoder_embed_dim": 32,
    "encoder_ffn_embed_dim": 64,
    "encoder_attention_heads": 2,
}


def line(kind: str, num_updates: int, seconds: float, **values: float) -> dict[str, object]:
    timestamp = f"2026-11-26T09:00:{seconds:06.3f}+00:00"
    return {"timestamp": timestamp, "kind": kind, "num_updates": num_updates, **values}


def test_update_time_is_the_median_after_the_warm_up():
    seconds = {10: 9.0, 20: 12.0, 30: 13.0, 40: 14.5, 50: 20.0}  # a validation before update 50
    lines = [line("train_inner", number, second) for number, second in seconds.items()]
    lines.insert(2, line("valid", 20, 12.5))
    assert _costs(lines) == {"update_s": pytest.approx(0.225)}  # of 0.3, 0.1, 0.15, 0.55
    assert _costs(lines[:1]) == {}


def test_memory_is_the_maximum_over_all_starts():
    ends = [
        line("end", 20, 1, peak_gib=1.5, peak_gib_at_begin=0.5),
        line("end", 50, 2, peak_gib=1.25, peak_gib_at_begin=0.5),
    ]
    assert _costs(ends) == {"peak_gib": 1.5, "memory_gib": 1.0}


def test_first_update_that_reaches_an_accuracy(tmp_path: Path):
    lines = [line("health", n, n, linear_accuracy=n / 100) for n in (20, 40, 60)]
    lines.insert(0, line("health", 10, 1, rank_me=3.0))
    (tmp_path / METRICS_FILE).write_text("".join(f"{json.dumps(each)}\n" for each in lines))
    assert updates_to(tmp_path, 0.3) == {"updates_to": 40}
    assert updates_to(tmp_path, 0.7) == {}


def test_measures_of_probes_have_the_name_in_front():
    assert heading("words_random_linear") == "words, linear probe, random weights (%)"
    assert heading("update_s") == "update (ms)"
    assert measure_of("words_knn") is MEASURES["knn"]


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    rows = []
    for number, size in enumerate((16_000, 24_000, 16_000)):
        rng = np.random.default_rng(number)
        wave = np.sin(np.arange(size) * 0.05 * (number + 1)) + 0.1 * rng.standard_normal(size)
        soundfile.write(tmp_path / f"{number}.wav", 0.3 * wave, 16_000)
        rows.append((f"{number}.wav", size, 16_000))
    write_manifest(tmp_path / "valid.tsv", str(tmp_path), rows)
    return Manifest.load(tmp_path / "valid.tsv")


def mae_ast(**settings: object) -> PretrainedMaeAst:
    torch.manual_seed(0)
    config = MaeAstConfig(**SMALL, decoder_layers=1, decoder_embed_dim=32, **settings)
    return PretrainedMaeAst(config, "chunk_mask").eval()


def test_relative_error_of_a_constant_is_that_of_the_variance(manifest):
    model = mae_ast()
    for weight in model.final_proj_reconstruction.parameters():
        torch.nn.init.zeros_(weight)
    found = masked_scores(model, manifest, "random_mask", 0.75)
    masks = torch.cat([batch.mask.masked_ids.flatten() for batch in _batches(model, manifest)])
    assert found.num_masked == len(masks)
    values = torch.cat(
        [
            model(batch.source, None, batch.mask).target.flatten()
            for batch in _batches(model, manifest)
        ]
    ).double()
    expected = values.square().mean() / values.var(correction=0)
    assert found.relative_mse == pytest.approx(float(expected), rel=1e-5)


def _batches(model, manifest):
    from mae_ast.evaluate.masked_prediction import _batches as batches

    return batches(model, manifest, "random_mask", 0.75)


def test_masks_are_the_same_for_all_models_and_settings(manifest):
    torch.manual_seed(0)
    ssast = PretrainedSsast(SsastConfig(**SMALL), "chunk_mask").eval()
    other = mae_ast(random_mask_prob=0.5)
    masks = [
        [batch.mask.masked_ids for batch in _batches(model, manifest)]
        for model in (mae_ast(), other, ssast)
    ]
    for found in masks[1:]:
        for ours, theirs in zip(found, masks[0], strict=True):
            assert torch.equal(ours, theirs)
    scores = masked_scores(ssast, manifest, "random_mask", 0.75)
    assert 0.5 < scores.relative_mse < 50
    assert 0 <= scores.accuracy <= 1


@pytest.mark.usefixtures("manifest")  # writes the usable clips
def test_clips_that_are_short_or_damaged_are_skipped(tmp_path):
    (tmp_path / "damaged.wav").write_bytes(b"RIFF")
    soundfile.write(tmp_path / "short.wav", np.zeros(2000), 16_000)
    rows = [("0.wav", 16_000, 16_000), ("1.wav", 24_000, 16_000), ("2.wav", 16_000, 16_000)]
    rows += [("damaged.wav", 16_000, 16_000), ("short.wav", 2000, 16_000)]
    write_manifest(tmp_path / "more.tsv", str(tmp_path), rows)
    more = Manifest.load(tmp_path / "more.tsv")
    model = mae_ast()
    found = masked_scores(model, more, "random_mask", 0.75)
    assert found.num_masked > 0
    usable = more.take([0, 1, 2])
    assert found.num_masked == masked_scores(model, usable, "random_mask", 0.75).num_masked
    with pytest.raises(ValueError, match=r"more\.tsv: no clip can be used"):
        masked_scores(model, more.take([3, 4]), "random_mask", 0.75)


def test_a_system_without_info_nce_has_no_accuracy_of_it(manifest):
    torch.manual_seed(0)
    config = AudioMaeConfig(
        **SMALL, decoder_layers=2, decoder_embed_dim=32, decoder_attention_heads=4
    )
    model = PretrainedAudioMae(config, "random_mask").eval()
    found = masked_scores(model, manifest, "random_mask", 0.75)
    assert found.accuracy is None
    assert found.relative_mse > 0
