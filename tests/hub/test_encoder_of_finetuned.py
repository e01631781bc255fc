"""``mae_ast.load`` of fine-tuned checkpoints: the encoder; for AST the full classifier."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch

import mae_ast
from mae_ast.core.checkpoints.reader import RUN_FILE
from mae_ast.core.models.classifier import HeadConfig
from mae_ast.core.models.registry import SYSTEMS
from mae_ast.finetune.checkpoint import load_finetuned
from tests.core.vits import encoder_of
from tests.sounds import speech_like
from tests.systems.cases import FIRST
from tests.systems.test_checkpoints import LABELS, finetuned_file

pytestmark = pytest.mark.slow


@pytest.fixture(params=sorted(SYSTEMS))
def finetuned(request, tmp_path) -> tuple[str, Path]:
    """Return the name of a system, and a run with a fine-tuned checkpoint of it."""
    finetuned_file(FIRST[request.param], tmp_path / "run", HeadConfig(2))
    return request.param, tmp_path / "run"


def assert_same_states(found: Any, encoder: Any) -> None:
    waveform = speech_like(12_000).unsqueeze(0)
    states = encoder.hidden_states(waveform)
    assert len(states) == 2
    for ours, theirs in zip(found.hidden_states(waveform), states, strict=True):
        assert torch.equal(ours, theirs)


def test_commands_accept_encoders_or_refuse_them_in_one_line(mae_ast_command, finetuned, tmp_path):
    system, run = finetuned
    soundfile.write(tmp_path / "a.wav", speech_like(16_000).numpy(), 16_000)
    (tmp_path / "train.tsv").write_text(f"{tmp_path}\na.wav\t16000\t16000\n")
    out, message = mae_ast_command("extract", run, tmp_path / "train.tsv", tmp_path / "features")
    assert not message
    assert out.strip().endswith("train_0_1.len")

    refused = "encoder only"
    _, message = mae_ast_command("convert", run, tmp_path / "out", "--to", "released")
    assert refused in message
    _, message = mae_ast_command("reconstruct", run, tmp_path / "a.wav")
    assert ("cannot reconstruct" if system in ("ast", "vit") else refused) in message
    if system == "ast":
        mae_ast.load(run).save_pretrained(tmp_path / "hub")
        _, message = mae_ast_command("predict", tmp_path / "hub", tmp_path / "a.wav")
        assert "not a fine-tuned checkpoint" in message
    assert not (tmp_path / "out").exists()


def test_classifier_in_wrapper_modules_of_torch(tmp_path):
    """Load a checkpoint saved by a user's script for several GPUs with a compiled model."""
    finetuned_file(FIRST["mae_ast"], run := tmp_path / "run", HeadConfig(2))
    waveform = speech_like(12_000).unsqueeze(0)
    expected = load_finetuned(run).scores(waveform)
    state = torch.load(run / RUN_FILE, weights_only=True)
    state["model"] = {f"module._orig_mod.{name}": v for name, v in state["model"].items()}
    torch.save(state, run / RUN_FILE)
    assert torch.equal(load_finetuned(run).scores(waveform), expected)


def test_full_ast_is_loaded_and_exported_to_transformers(mae_ast_command, tmp_path):
    case = dataclasses.replace(FIRST["ast"], fields={"input_frames": 128, "num_classes": 2})
    finetuned_file(case, run := tmp_path / "run", HeadConfig(2, pool="encoder"))
    waveform = speech_like(12_000).unsqueeze(0)
    expected = load_finetuned(run).model(waveform)

    model = mae_ast.load(run)
    assert (model.labels, model.encoder_only) == (LABELS.names, False)
    assert torch.allclose(model.logits(waveform), expected, atol=1e-6)
    _, message = mae_ast_command("convert", run, tmp_path / "theirs", "--to", "transformers")
    assert not message
    assert_same_states(encoder_of(run), model)
    model.save_pretrained(tmp_path / "ours")
    again = load_finetuned(tmp_path / "ours")
    assert (again.description.independent, again.description.multi_label) == (False, False)
    assert torch.allclose(again.scores(waveform), expected.softmax(1), atol=1e-6)
    there = mae_ast.load(tmp_path / "theirs")
    assert there.labels == LABELS.names
    assert torch.allclose(there.logits(waveform), expected, atol=1e-5)
