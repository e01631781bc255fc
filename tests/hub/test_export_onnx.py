"""ONNX files compute what the core computes, from log-mel and from waveforms of any length."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import soundfile
import torch
from torch import Tensor
from torch.testing import assert_close

from mae_ast.core.checkpoints.classifier import ClassifierSpec
from mae_ast.core.frontend.fbank import fbank
from mae_ast.core.io.labels import Labels
from mae_ast.core.models.classifier import HeadConfig
from mae_ast.evaluate.predict import score_recording
from mae_ast.finetune.checkpoint import FineTuned, load_finetuned
from mae_ast.hub import export_onnx
from mae_ast.hub.load import hub_class, load_encoder
from mae_ast.hub.onnx_graph import LastHiddenState, Scores, frames_of
from tests.core.vits import with_random_weights
from tests.docs.snippets import blocks
from tests.sounds import pcm16, speech_like
from tests.systems.cases import CASES, FIXED_LENGTH, Case, system_of

REPOSITORY = Path(__file__).parents[2]
LENGTHS = (2_800, 16_000, 40_000, 159_520, 260_000)
NAMES = ("dog", "rain", "siren", "speech", "wind")
# Input, and systems with patches and frames.
EXPORTED = {
    "mae_ast: frames": "waveform-int16",
    "ssast: patches": "waveform",
    "ast: two": "waveform",
    "audio_mae: fixed length": "waveform-int16",
    "mae_ast: pre-norm": "log-mel",
}
CLASSIFIERS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "MAE-AST, softmax": ("mae_ast: patches", {}, {"pool": "time_steps"}),
    "AST, multi-label, windows of 1.28 s": ("ast: two", FIXED_LENGTH, {"pool": "encoder"}),
}


def model_of(case: Case, **fields: Any) -> Any:
    config = case.config(**{"encoder_layers": 1} | fields)
    return with_random_weights(hub_class(system_of(case))(config, encoder_only=True)).eval()


def classifier_of(name: str) -> FineTuned:
    case, fields, head = CLASSIFIERS[name]
    spec = ClassifierSpec(
        CASES[case].config(encoder_layers=1, **fields),
        HeadConfig(len(NAMES), **head),
        Labels(NAMES, NAMES),
        independent="multi" in name,
        multi_label="multi" in name,
        clip_samples=16_000,
    )
    return FineTuned(with_random_weights(spec.build()), spec)


def clips(num: int, length: int) -> Tensor:
    return torch.stack([pcm16(speech_like(length, seed)) for seed in range(num)])


def run(path: Path, source: str, pcm: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    given = pcm if source.endswith("int16") else pcm.float() / 32768
    given = fbank(given) if source == "log-mel" else given
    (found,) = session.run(None, {session.get_inputs()[0].name: given.numpy()})
    return torch.from_numpy(found)


def features_of(model: Any, pcm: Tensor, **options: Any) -> Tensor:
    """Return the core's last hidden state of clips of equal length."""
    states = model.extract_features(pcm, layers=[-1], **options).hidden_states
    with torch.no_grad():
        return model.last_hidden_state(list(states))


@pytest.mark.parametrize("name", [name for name in CASES if "toy" not in name])
def test_graph_equals_extract_features(name):
    model = model_of(CASES[name])
    graph = LastHiddenState(model)
    for length in (graph.min_samples, 13_000, 250_000):
        pcm = clips(2, length)
        with torch.no_grad():
            assert_close(graph(pcm), features_of(model, pcm), rtol=0, atol=1e-5)


def test_windows_shorter_than_the_input_see_the_frames_up_to_the_next_patch():
    model = model_of(CASES["audio_mae: fixed length"], input_frames=1_100)  # 11 s, windows of 10 s
    pcm = clips(1, 300_000)
    with torch.no_grad():
        assert_close(LastHiddenState(model)(pcm), features_of(model, pcm), rtol=0, atol=1e-5)


def test_frames_are_those_of_the_filterbank():
    wave = torch.arange(1_119.0)[None]
    assert_close(frames_of(wave), wave.unfold(-1, 400, 160), rtol=0, atol=0)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_graph_scores_as_predict(name):
    classifier = classifier_of(name)
    graph = Scores(classifier)
    for length in (2_800, 16_000, 500_000):  # the last has several windows
        pcm = clips(2, length)
        with torch.no_grad():
            assert_close(graph(pcm), classifier.scores(pcm), rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPORTED)
def test_onnx_of_an_encoder(name, tmp_path):
    path, source = tmp_path / "a.onnx", EXPORTED[name]
    model = model_of(CASES[name])
    written = export_onnx.to_onnx(model, path, source=source)
    assert written.float32.max_difference < 1e-3
    assert written.float32.size == path.stat().st_size
    assert written.int8 is None
    for batch in (1, 3):
        for length in LENGTHS:
            pcm = clips(batch, length)
            assert_close(run(path, source, pcm), features_of(model, pcm), rtol=0, atol=1e-3)
    assert os.listdir(tmp_path) == ["a.onnx"]
    content = onnx.load(path)
    axes = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*content.graph.input, *content.graph.output)
    }
    given = {"log_mel": ["batch", "frames", 128]} if source == "log-mel" else {}
    assert axes == {
        **(given or {"waveform": ["batch", "samples"]}),
        "last_hidden_state": ["batch", "tokens", model.config.encoder_embed_dim],
    }
    assert str(REPOSITORY).encode() not in path.read_bytes()  # no stack traces


@pytest.mark.slow
def test_int8_changes_little_and_leaves_the_filterbank_alone(mae_ast_command, tmp_path):
    model = model_of(CASES["mae_ast: patches"], encoder_embed_dim=96, encoder_ffn_embed_dim=384)
    model.save_pretrained(tmp_path / "model")
    path = tmp_path / "a.onnx"
    out, message = mae_ast_command(
        "convert", tmp_path / "model", path, *("--to", "onnx", "--input", "waveform", "--int8")
    )
    assert not message, message
    assert "int8 differs from PyTorch by 0.0" in out
    assert "10 s of audio take" in out
    nodes = [node.op_type for node in onnx.load(path).graph.node]
    assert nodes.count("MatMulInteger") == 6  # q, k, v, output, and the feed-forward block
    assert nodes.count("MatMul") == 4  # filterbank, patch projection, and twice in attention
    pcm = clips(2, 40_000)
    found, expected = run(path, "waveform", pcm), features_of(model, pcm)
    difference = (found - expected).abs().mean() / expected.abs().mean()
    assert 1e-4 < difference < 0.03
    metadata = {each.key: each.value for each in onnx.load(path).metadata_props}
    assert 0 < float(metadata["int8_mean_difference"]) < 0.03


@pytest.mark.slow
def test_int8_of_a_classifier(tmp_path):
    classifier = classifier_of("AST, multi-label, windows of 1.28 s")
    path = tmp_path / "a.onnx"
    written = export_onnx.to_onnx(classifier, path, source="waveform", int8=True)
    nodes = [node.op_type for node in onnx.load(path).graph.node]
    assert nodes.count("MatMulInteger") == 6  # those of the transformer; the head is in float32
    pcm = clips(2, 40_000)
    difference = (run(path, "waveform", pcm) - classifier.scores(pcm)).abs().mean()
    assert 0 < difference < 0.02
    assert 0 < written.int8.mean_difference < 0.02
    metadata = {each.key: each.value for each in onnx.load(path).metadata_props}
    assert json.loads(metadata["labels"]) == list(NAMES)
    assert metadata["multi_label"] == "true"


def test_files_that_differ_are_not_kept(monkeypatch, tmp_path):
    def export_nothing(graph, path, *_):
        path.write_bytes(b"")
        return []

    differing = export_onnx.Measured(0.002, 0.001, 1.0, 0.1, 1)
    monkeypatch.setattr(export_onnx, "_export", export_nothing)
    monkeypatch.setattr(export_onnx, "measure", lambda *_: differing)
    with pytest.raises(ValueError, match=r"a\.onnx: differs from PyTorch by 0\.002"):
        export_onnx.to_onnx(model_of(CASES["mae_ast: patches"]), tmp_path / "a.onnx")
    assert os.listdir(tmp_path) == []


def test_options_of_onnx_are_for_onnx_only(mae_ast_command, tmp_path):
    for option in (("--int8",), ("--input", "waveform")):
        _, message = mae_ast_command(
            "convert", "model.pt", tmp_path / "a", "--to", "safetensors", *option
        )
        assert message == (
            "mae-ast: error: --input and --int8 are options of --to onnx, not of --to safetensors"
        )


@pytest.mark.slow
def test_classifier_and_its_runner_without_torch(mae_ast_command, tmp_path):
    """A fine-tuned checkpoint, converted by the command, scores as predict does."""
    path = tmp_path / "m.onnx"
    classifier = classifier_of("MAE-AST, softmax")
    task_state = {"mae_ast_classification": classifier.description.to_dict()}
    state = {"model": classifier.model.state_dict(), "task_state": task_state}
    torch.save({**state, "cfg": {"model": {}, "task": {}}}, tmp_path / "model.pt")
    options = ("--to", "onnx", "--input", "waveform")
    _, message = mae_ast_command("convert", tmp_path / "model.pt", path, *options)
    assert not message, message
    for batch in (1, 2):
        for length in (*LENGTHS, 500_000):  # several windows
            pcm = clips(batch, length)
            assert_close(run(path, "waveform", pcm), classifier.scores(pcm), rtol=0, atol=1e-3)
    metadata = {each.key: each.value for each in onnx.load(path).metadata_props}
    assert json.loads(metadata["labels"]) == list(NAMES)
    del metadata["labels"], metadata["written_by"]
    assert metadata == {
        **{"sample_rate": "16000", "min_samples": "2800"},
        **{"system": "mae_ast", "multi_label": "false"},
    }

    soundfile.write(tmp_path / "dog.wav", clips(1, 30_000)[0].numpy(), 16_000)
    scores = score_recording(load_finetuned(tmp_path / "model.pt"), tmp_path / "dog.wav")
    page = (REPOSITORY / "docs/onnx.md").read_text(encoding="utf-8")
    (code,) = [block.code for block in blocks(page) if "soundfile" in block.code]
    assert len(code.splitlines()) <= 20
    (tmp_path / "run_onnx.py").write_text(code)
    blocked = "import sys; sys.modules |= dict.fromkeys(('torch', 'torchaudio', 'mae_ast'));"
    blocked += "import runpy; runpy.run_path('run_onnx.py', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", blocked, "m.onnx", "dog.wav"],
        **{"cwd": tmp_path, "capture_output": True, "text": True, "check": True},
    )
    printed = dict(line.split("\t")[::-1] for line in done.stdout.splitlines())
    assert printed.keys() == set(NAMES)
    for name, score in zip(NAMES, scores, strict=True):
        assert abs(float(printed[name]) - score) < 1e-3
    assert next(iter(printed)) == NAMES[int(np.argmax(scores))]


def test_ast_with_its_head_is_a_classifier(tmp_path):
    ast = hub_class("ast")(CASES["ast: two"].config(), labels=NAMES).eval()
    ast.save_pretrained(tmp_path / "ast")
    found = export_onnx._with_head(ast)
    pcm = clips(2, 20_000)
    expected = load_finetuned(tmp_path / "ast").scores(pcm)
    assert_close(found.scores(pcm), expected, rtol=0, atol=1e-6)
    assert found.labels.names == NAMES
    for encoder in (model_of(CASES["ast: two"]), load_encoder(tmp_path / "ast")):
        assert export_onnx._with_head(encoder) is encoder
