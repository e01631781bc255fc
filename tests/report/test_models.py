"""Parts of a report that need a model: reconstructions, embeddings, the time of a step."""

from __future__ import annotations

import base64
import dataclasses

import numpy as np
import pytest
import torch

from mae_ast.core.io.labels import write_clip_labels
from mae_ast.core.io.manifest import Manifest, write_manifest
from mae_ast.report import embeddings as embedding
from mae_ast.report import steps
from mae_ast.report.collect import read_run
from mae_ast.report.embeddings import embeddings, layer_of, principal_components
from mae_ast.report.reconstructions import MASKED, Excerpts, as_pixels, reconstructions
from mae_ast.report.sounds import Sounds
from mae_ast.report.steps import PARTS, recorded, step_times

from .conftest import LABELS


def pixels(shown) -> np.ndarray:
    levels = np.frombuffer(base64.b64decode(shown["pixels"]), np.uint8)
    return levels.reshape(shown["frames"], 128)


def test_runs_share_the_clips_that_they_reconstruct(run, write_run, tmp_path):
    other = read_run(write_run(tmp_path / "other", model__random_mask_prob=0.5), "other")
    found = read_run(run, "tones")
    sounds = Sounds()
    clips = reconstructions([found, other], Excerpts(2, 5.0), "cpu", sounds)
    assert [clip["name"] for clip in clips] == ["valid_00.wav", "valid_23.wav"]
    assert len(sounds.uris) == 2 * (2 + 2 * 2)
    for clip in clips:
        original = pixels(clip["original"])
        assert original.max() < MASKED
        for each, ratio in zip(clip["runs"], (0.75, 0.5), strict=True):
            visible, rebuilt = pixels(each["visible"]), pixels(each["rebuilt"])
            is_masked = visible == MASKED
            assert is_masked.mean() == pytest.approx(ratio, abs=0.05)
            assert each["masked"] == pytest.approx(is_masked.mean(), abs=1e-6)
            assert (visible == original)[~is_masked].all()
            assert (rebuilt == original)[~is_masked].all()
            assert (rebuilt != original)[is_masked].any()
            assert each["mse"] > 0
    assert found.notes == other.notes == []


def test_pixels_span_the_scale():
    values = torch.tensor([[-9.0, -5.0, 0.0, 5.0, 9.0, float("nan")]])
    shown = as_pixels(values, -5.0, 5.0)
    levels = np.frombuffer(base64.b64decode(shown["pixels"]), np.uint8)
    assert levels.tolist() == [0, 0, 127, 254, 254, MASKED]


def test_missing_clips_are_noted(run, tmp_path):
    found = dataclasses.replace(read_run(run, "tones"), data=(tmp_path,))
    assert reconstructions([found], Excerpts(2, 5.0), "cpu", Sounds()) == []
    assert embeddings([found], None, "cpu", Sounds()) == []
    assert [note.partition(":")[0] for note in found.notes] == ["reconstructions", "embeddings"]
    assert str(tmp_path / "valid.tsv") in found.notes[0]


def test_clips_are_embedded_with_labels_and_sounds(run, monkeypatch):
    monkeypatch.setattr(embedding, "ALL_CLIPS_S", 5.0)  # of 24 clips of 0.5 s
    sounds = Sounds()
    found = read_run(run, "tones")
    (shown,) = embeddings([found], None, "cpu", sounds)
    assert shown["layer"] == 1  # that of the last probe
    assert shown["labels"] == list(LABELS.names)
    assert shown["classes"] == [0, 1] * 12
    assert shown["texts"][1] == LABELS.names[1]
    assert shown["names"][3] == "valid_03.wav"
    assert shown["sounds"] == [*range(10), *[None] * 14]
    points = np.array(shown["pca"])
    low, high = points[::2, 0], points[1::2, 0]  # two pitches are apart along the first component
    assert low.max() < high.min() or high.max() < low.min()
    assert 0.3 < shown["explained"] <= 1
    assert np.array(shown["tsne"]).shape == (24, 2)


def test_clips_with_several_labels_are_coloured_by_the_first(run, corpus, tmp_path):
    manifest = Manifest.read(corpus / "valid.tsv")
    rows = [(manifest.row_path(row), 8000, 16_000) for row in range(4)]
    write_manifest(tmp_path / "valid.tsv", str(corpus), rows)
    write_clip_labels(tmp_path / "valid.lbl", [["low", "high"], ["high"], ["low"], ["high"]])
    LABELS.write(tmp_path / "labels.csv")
    (shown,) = embeddings([read_run(run, "tones")], tmp_path, "cpu", Sounds())
    assert shown["classes"] == [0, 1, 0, 1]
    assert shown["texts"][0] == ", ".join(LABELS.names)
    assert shown["tsne"] is None  # too few clips


def test_layer_without_a_probe_is_the_last_one(run):
    found = read_run(run, "tones")
    assert layer_of(dataclasses.replace(found, lines=[]), 12) == 12


def test_principal_components_of_one_clip_and_of_equal_clips():
    for clips in (1, 3):
        points, explained = principal_components(np.ones((clips, 5)))
        assert points.shape == (clips, 2)
        assert explained == 0.0


def test_a_step_is_recorded_and_split(run):
    found = read_run(run, "tones")
    assert recorded(found) == {"update_s": 0.25, "clips_per_s": 32.0}
    (times,) = step_times([found], "cpu", 1)
    assert list(times["parts"]) == list(PARTS)
    assert all(0 < seconds < 5 for seconds in times["parts"].values())
    assert (times["clips"], times["batch"], times["seconds"]) == (4, 4, 0.5)
    assert 0 < times["counted_gib"] < 0.1
    assert found.notes == []
    ends = [{"kind": "end", "peak_gib": peak} for peak in (1.5, 2.0, None)]
    assert recorded(dataclasses.replace(found, ends=ends))["process_gib"] == 2.0
    assert step_times([found], "cpu", 0) == [{"run": 0, **recorded(found)}]


@pytest.mark.parametrize(
    ("tokens", "clips", "batch"), [(None, 4, 4), (16_000, None, 2), (16_000, 4, 2), (None, None, 8)]
)
def test_batch_is_limited_by_clips_and_samples(write_run, tmp_path, tokens, clips, batch):
    limits = {"dataset__max_tokens": tokens, "dataset__batch_size": clips}
    found = read_run(write_run(tmp_path / "run", **limits, model__precision="float32"), "run")
    training = steps._training(found, torch.device("cpu"))
    assert training.batch_size == batch
    assert len(training.rows) == min(batch, 6)
    assert training.encoder.precision == "float32"
