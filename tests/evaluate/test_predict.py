"""Test the scores of files and manifests: whole clips, consistency, linear time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from mae_ast.core.io.audio import AudioError
from mae_ast.core.io.labels import Labels, write_clip_labels
from mae_ast.core.io.manifest import Manifest, write_manifest
from mae_ast.core.models.config import AstConfig
from mae_ast.core.nn import precision
from mae_ast.evaluate import predict, read_clips
from mae_ast.evaluate.predict import score_files, score_manifest, score_recording
from mae_ast.finetune.checkpoint import FineTuned, load_finetuned
from mae_ast.hub.load import PretrainedAst
from tests.core.vits import SMALL, with_random_weights
from tests.sounds import speech_like

NAMES = ("a bird", "rain", "siren")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """Write an AST checkpoint that cuts or zero-pads clips to 1.28 s."""
    config = AstConfig(**SMALL, input_frames=128, num_classes=len(NAMES), input_mean=-6.0)
    with_random_weights(PretrainedAst(config, labels=NAMES)).save_pretrained(tmp_path / "ast")
    return tmp_path / "ast"


def write_sound(path: Path, seconds: float, loud_at: float | None = None) -> Path:
    wave = 1e-3 * torch.randn(round(seconds * 16_000))
    if loud_at is not None:
        begin = round(loud_at * 16_000)
        wave[begin : begin + 16_000] += speech_like(16_000)[: len(wave) - begin]
    soundfile.write(path, wave.numpy(), 16_000, subtype="PCM_16")
    return path


def test_predict_scores_a_clip_to_its_end(mae_ast_command, published, tmp_path):
    torch.manual_seed(1)
    quiet = write_sound(tmp_path / "quiet.wav", 15.0)
    torch.manual_seed(1)
    loud = write_sound(tmp_path / "loud.wav", 15.0, loud_at=12.0)
    classifier = load_finetuned(published)
    one, other = score_recording(classifier, quiet), score_recording(classifier, loud)
    assert np.abs(one - other).max() > 1e-3
    samples, rate = soundfile.read(loud, dtype="float32")
    as_arrays = score_recording(classifier, (np.stack((samples, samples)), rate))
    np.testing.assert_allclose(as_arrays, other, atol=1e-4)
    out, message = mae_ast_command("predict", published, quiet, loud, "--top", "3")
    assert not message
    lines = [line.split("\t") for line in out.splitlines()]
    printed = {(file, name): float(value) for file, value, name in lines}
    for path, scores in ((quiet, one), (loud, other)):
        for name, score in zip(NAMES, scores, strict=True):
            assert printed[str(path), name] == pytest.approx(score, abs=1e-4)


def test_files_in_batches_have_the_scores_of_each_alone(published, tmp_path, monkeypatch):
    seconds = (3.0, 0.5, 1.28, 4.2, 0.9, 2.0, 1.1)
    files = [write_sound(tmp_path / f"{n}.wav", s, s - 0.4) for n, s in enumerate(seconds)]
    (tmp_path / "bad.wav").write_bytes(b"RIFFnothing")
    files[3:3] = [tmp_path / "bad.wav", tmp_path / "none.wav"]
    classifier = load_finetuned(published)
    sizes = []
    scores = classifier.scores
    monkeypatch.setattr(
        classifier, "scores", lambda x, *rest: sizes.append(tuple(x.shape)) or scores(x, *rest)
    )
    monkeypatch.setattr(predict, "BATCH_SAMPLES", 3 * 16_000)
    found = list(score_files(classifier, files))
    assert [(n, round(samples / 16_000, 2)) for n, samples in sizes] == [
        (2, 0.9), (2, 1.28), (1, 2.0), (1, 3.0), (1, 4.2),
    ]  # fmt: skip
    assert [type(each) for each in found[3:5]] == [AudioError, FileNotFoundError]
    for file, own in zip(files, found, strict=True):
        if isinstance(own, np.ndarray):
            np.testing.assert_allclose(own, score_recording(classifier, file), atol=1e-5)


def test_bfloat16_scores_are_close_to_those_in_float32(
    mae_ast_command, published, tmp_path, monkeypatch
):
    path = write_sound(tmp_path / "a.wav", 3.0, loud_at=1.0)
    monkeypatch.setattr(precision, "has_bfloat16_units", lambda kind: True)
    scores = {}
    for name in ("float32", "bfloat16"):
        out, message = mae_ast_command("predict", published, path, "--precision", name)
        assert not message
        scores[name] = {
            line.split("\t")[2]: float(line.split("\t")[1]) for line in out.splitlines()
        }
    assert scores["bfloat16"] != scores["float32"]
    assert scores["bfloat16"] == pytest.approx(scores["float32"], abs=0.02)
    monkeypatch.setattr(precision, "has_bfloat16_units", lambda kind: False)
    _, message = mae_ast_command("predict", published, path, "--precision", "bfloat16")
    assert message.startswith("mae-ast: error: --precision 'bfloat16': this device (cpu) does not ")
    _, message = mae_ast_command("predict", published, path, "--precision", "half")
    assert message == ("mae-ast: error: --precision 'half'; must be one of auto, float32, bfloat16")


def test_evaluate_and_predict_give_the_same_scores(mae_ast_command, published, tmp_path):
    rows = []
    for number, seconds in enumerate((0.5, 3.0, 4.2, 1.28)):
        write_sound(tmp_path / f"{number}.wav", seconds, loud_at=seconds - 0.4)
        rows.append((f"{number}.wav", round(seconds * 16_000), 16_000))
    write_manifest(tmp_path / "valid.tsv", ".", rows)
    classifier = load_finetuned(published)
    scores, used = score_manifest(classifier, Manifest.load(tmp_path / "valid.tsv"))
    assert used.all()
    for number, found in enumerate(scores):
        alone = score_recording(classifier, tmp_path / f"{number}.wav")
        np.testing.assert_allclose(found, alone, atol=1e-4)

    mids = tuple(f"class_{n}" for n in range(3))
    Labels(mids, NAMES).write(tmp_path / "labels.csv")
    write_clip_labels(tmp_path / "valid.lbl", [[mids[n % 3]] for n in range(4)])
    out, message = mae_ast_command("evaluate", published, tmp_path)
    assert not message
    assert "valid: 4 clips, 3 of 3 classes" in out


def test_lengths_are_computed_once(monkeypatch, tmp_path):
    """Computing them once per row is quadratic: 200,000 rows took 10 minutes."""
    count = 3_000
    write_manifest(tmp_path / "a.tsv", ".", [(f"{n}.wav", 400 + n, 16_000) for n in range(count)])
    manifest = Manifest.read(tmp_path / "a.tsv")
    lengths, asked = manifest.num_samples, []
    monkeypatch.setattr(Manifest, "num_samples", property(lambda self: asked.append(1) or lengths))
    monkeypatch.setattr(
        read_clips, "read_or_skip", lambda manifest, row, *options: torch.tensor([row])
    )

    def row_numbers(source: torch.Tensor, lengths: Any) -> torch.Tensor:
        return source.float()

    shape = SimpleNamespace(min_samples=400)
    model = SimpleNamespace(encoder=SimpleNamespace(patch_shape=shape))
    classifier: FineTuned = SimpleNamespace(model=model, labels=("a",), scores=row_numbers)
    scores, used = score_manifest(classifier, manifest)
    assert used.all()
    assert scores[:, 0].tolist() == list(range(count))
    assert len(asked) < 10
