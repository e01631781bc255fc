"""Test feature extraction: fairseq's file format, resuming, errors."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from mae_ast.core.io.atomic import file_lock
from mae_ast.core.io.manifest import Manifest, ManifestError, write_manifest
from mae_ast.core.nn import precision
from mae_ast.evaluate import extract as extraction
from mae_ast.evaluate.extract import Extraction, extract, parse_shard
from mae_ast.hub.load import PretrainedMaeAst
from tests.sounds import speech_like

SECONDS = (1.0, 0.5, 2.0, 0.1, 1.5, 0.7, 3.0)
BAD, SHORT = 4, 3  # rows of a clip without audio and of one shorter than a patch


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch):
    few = partial(extraction.for_each_batch, batch_samples=40_000)
    monkeypatch.setattr(extraction, "for_each_batch", few)


@pytest.fixture
def manifest(tmp_path) -> Manifest:
    rows = []
    for number, seconds in enumerate(SECONDS):
        wave = speech_like(round(16_000 * seconds), number)
        path = tmp_path / f"{number}.wav"
        soundfile.write(path, wave.numpy(), 16_000, subtype="PCM_16")
        rows.append((path.name, len(wave), 16_000))
    (tmp_path / f"{BAD}.wav").write_bytes(b"RIFFnothing")
    write_manifest(tmp_path / "valid.tsv", ".", rows)
    return Manifest.read(tmp_path / "valid.tsv")


@pytest.fixture
def model(small_config) -> PretrainedMaeAst:
    return PretrainedMaeAst(small_config((16, 32)), "random_mask").eval()


def wanted(**fields) -> Extraction:
    values = {"layer": 2, "pool": False, "tokens": False, "shard": 0, "shards": 1}
    return Extraction(**(values | fields))


def run(model, manifest, out, **fields):
    return extract(model, manifest, out, wanted(**fields))


def stored(path: Path) -> list[np.ndarray]:
    """Read features as other implementations of the format do."""
    features = np.load(path, mmap_mode="r")
    lengths = [int(line) for line in path.with_suffix(".len").read_text().splitlines()]
    ends = np.cumsum(lengths)
    assert ends[-1] == len(features)
    return [features[end - n : end] for end, n in zip(ends, lengths, strict=True)]


def expected(model, manifest, row, **fields) -> np.ndarray | None:
    if row in (BAD, SHORT):
        return np.empty((0, 32 if fields.get("tokens") else 4 * 32))
    found = model.extract_features(manifest.audio_path(row), layers=[fields.get("layer", 2)])
    if fields.get("pool"):
        view = found.hidden_states if fields.get("tokens") else found.time_steps
        return view[0][0].mean(0, keepdim=True).numpy()
    return (found.hidden_states if fields.get("tokens") else found.time_steps)[0][0].numpy()


def test_extraction_is_not_resumed_in_another_precision(model, manifest, tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "has_bfloat16_units", lambda kind: True)
    path, _ = run(model, manifest, tmp_path)
    in_float32 = np.load(path)
    note = path.with_suffix(".json")
    known = json.loads(note.read_text())
    assert known.pop("precision") == "float32"
    note.write_text(json.dumps(known))  # as written by earlier versions
    assert run(model, manifest, tmp_path)[0] == path
    model.precision = "auto"
    with pytest.raises(ValueError, match="with precision 'float32', not 'bfloat16'; remove"):
        run(model, manifest, tmp_path)
    found = np.load(run(model, manifest, tmp_path / "half")[0])
    error = np.linalg.norm(found - in_float32) / np.linalg.norm(in_float32)
    assert 1e-5 < error < 0.02


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"pool": True},
        {"tokens": True},
        {"tokens": True, "layer": 1},
        {"tokens": True, "pool": True},
    ],
)
def test_rows_are_the_features_of_each_clip(model, manifest, tmp_path, fields):
    path, num_bad = run(model, manifest, tmp_path / "out", **fields)
    assert path == tmp_path / "out" / "valid_0_1.npy"
    assert num_bad == 2
    clips = stored(path)
    assert len(clips) == len(SECONDS)
    for row, clip in enumerate(clips):
        wanted = expected(model, manifest, row, **fields)
        assert clip.shape == wanted.shape
        assert np.allclose(clip, wanted, atol=1e-5)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        *("valid_0_1.json", "valid_0_1.len", "valid_0_1.npy")
    ]


def test_skipped_clips_are_logged_with_file_and_line(model, manifest, tmp_path, caplog):
    run(model, manifest, tmp_path / "out")
    assert "valid.tsv:6: skipped: " in caplog.text
    assert "valid.tsv:5: skipped: " in caplog.text
    assert "1600 samples at 16 kHz are shorter than one patch (2800)" in caplog.text


def test_shards_concatenate_to_the_unsharded_features(model, manifest, tmp_path):
    whole = stored(run(model, manifest, tmp_path / "one")[0])
    parts = [
        clip
        for shard in range(3)
        for clip in stored(run(model, manifest, tmp_path / "three", shard=shard, shards=3)[0])
    ]
    assert len(parts) == len(whole)
    for one, other in zip(parts, whole, strict=True):
        assert np.allclose(one, other, atol=1e-6)


class StopError(Exception):
    pass


@pytest.mark.parametrize("after", [1, 2, 3])
@pytest.mark.parametrize("truncated", [None, "len", "npy"])
def test_resumes_an_interrupted_extraction(model, manifest, tmp_path, after, truncated):
    whole, _ = run(model, manifest, tmp_path / "whole")
    calls = []
    extract_features = model.extract_features

    def stopping(waveforms, **options):
        calls.append(len(waveforms))
        if len(calls) > after:
            raise StopError
        return extract_features(waveforms, **options)

    out = tmp_path / "out"
    model.extract_features = stopping
    with pytest.raises(StopError):
        run(model, manifest, out)
    assert not (out / "valid_0_1.npy").exists()
    if truncated is not None:  # as after a crash of the machine
        part = out / f"valid_0_1.{truncated}.part"
        with part.open("r+b") as file:
            file.truncate(part.stat().st_size - (1 if truncated == "len" else 60))
    lengths_seen = []

    def counting(waveforms, **options):
        lengths_seen.append(len(waveforms))
        return extract_features(waveforms, **options)

    model.extract_features = counting
    path, _ = run(model, manifest, out)
    assert np.allclose(np.load(path), np.load(whole), atol=1e-5)
    assert path.with_suffix(".len").read_text() == whole.with_suffix(".len").read_text()
    if truncated is None:
        assert sum(lengths_seen) == 5 - sum(calls[:after])  # nothing is computed twice
    # A complete extraction is not repeated.
    assert run(model, manifest, out) == (path, 2)
    assert sum(lengths_seen) <= 5


def test_rejects_a_folder_with_another_extraction(model, manifest, tmp_path):
    run(model, manifest, tmp_path / "out")
    with pytest.raises(ValueError, match=r"out: was started with layer 2, not 1; remove valid_0"):
        run(model, manifest, tmp_path / "out", layer=1)
    description = json.loads((tmp_path / "out" / "valid_0_1.json").read_text())
    assert description["layer"] == 2
    assert description["width"] == 4 * 32


def test_rejects_a_concurrent_extraction(model, manifest, tmp_path):
    with (
        file_lock(tmp_path / "valid_0_1.npy"),
        pytest.raises(ValueError, match=r"valid_0_1\.npy: .*another process"),
    ):
        run(model, manifest, tmp_path)
    assert not (tmp_path / "valid_0_1.json").exists()
    run(model, manifest, tmp_path)


def test_rejects_a_folder_with_features_of_another_model(model, manifest, tmp_path):
    run(model, manifest, tmp_path / "out")
    with torch.no_grad():
        model.encoder.layers[0].fc1.bias[0] += 1
    with pytest.raises(ValueError, match=r"started with weights '\w{16}', not '\w{16}'"):
        run(model, manifest, tmp_path / "out")


def test_rejects_a_changed_manifest(model, manifest, tmp_path):
    run(model, manifest, tmp_path / "out")
    rows = [(f"{n}.wav", round(16_000 * s), 16_000) for n, s in enumerate(SECONDS)]
    write_manifest(manifest.path, ".", rows[::-1])
    with pytest.raises(ValueError, match=r"started with content '\w{16}', not"):
        run(model, Manifest.read(manifest.path), tmp_path / "out")


def test_features_without_a_description_are_not_overwritten(model, manifest, tmp_path):
    (tmp_path / "valid_0_1.npy").write_bytes(b"features")
    with pytest.raises(ValueError, match=r"valid_0_1\.npy: exists, but valid_0_1\.json"):
        extract(model, manifest, tmp_path, Extraction(1, False, False, 0, 1))
    assert (tmp_path / "valid_0_1.npy").read_bytes() == b"features"


def test_rejects_a_damaged_description(model, manifest, tmp_path):
    run(model, manifest, tmp_path / "out")
    (tmp_path / "out" / "valid_0_1.json").write_text("")
    with pytest.raises(
        ValueError, match=r"valid_0_1\.json: is damaged \(Expecting value.*\); remove valid_0_1"
    ):
        run(model, manifest, tmp_path / "out")


def test_resumes_after_a_full_disk(model, manifest, tmp_path, small_disk):
    filler = small_disk / "filler"
    filler.write_bytes(bytes(40_000))
    with pytest.raises(
        OSError, match=r"valid_0_1\.npy: could not be written .*disk space.* resumes$"
    ):
        run(model, manifest, small_disk)
    filler.unlink()
    path, _ = run(model, manifest, small_disk)
    whole, _ = run(model, manifest, tmp_path / "whole")
    assert np.allclose(np.load(path), np.load(whole), atol=1e-5)


def test_rejects_more_shards_than_clips(model, manifest, tmp_path):
    with pytest.raises(ManifestError, match="7 clips for 9 shards"):
        run(model, manifest, tmp_path / "out", shard=8, shards=9)


@pytest.mark.parametrize("text", ["1", "a/b", "2/2", "-1/2", "1/0", "/", "1/2/3"])
def test_rejects_a_malformed_shard(text):
    with pytest.raises(ValueError, match="i/n with i from 0 to n - 1"):
        parse_shard(text)


def test_parses_a_shard():
    assert parse_shard("3/4") == (3, 4)


def test_extraction_without_usable_clips_is_empty(model, tmp_path):
    (tmp_path / "a.wav").write_bytes(b"nothing")
    write_manifest(tmp_path / "train.tsv", ".", [("a.wav", 16_000, 16_000)])
    path, num_bad = run(model, Manifest.read(tmp_path / "train.tsv"), tmp_path / "out")
    assert num_bad == 1
    assert np.load(path).shape == (0, 4 * 32)
