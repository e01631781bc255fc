"""``mae_ast.load`` of fine-tuned checkpoints: the encoder; for AST the full classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch

import mae_ast
from mae_ast.core.checkpoints.classifier import ClassifierSpec
from mae_ast.core.checkpoints.reader import FINETUNING, RUN_FILE
from mae_ast.core.io.labels import Labels
from mae_ast.core.models.classifier import Classifier, HeadConfig
from mae_ast.core.models.config import AstConfig, AudioMaeConfig, SsastConfig, VitConfig
from mae_ast.core.models.encoder import Encoder, encoder_only
from mae_ast.core.models.registry import SYSTEMS
from mae_ast.finetune.checkpoint import load_finetuned
from tests.core.vits import SMALL, encoder_of, with_random_weights
from tests.sounds import speech_like

pytestmark = pytest.mark.slow

LABELS = Labels(("/m/a", "/m/b"), ("Animal", "Bird, singing"))
CONFIGS: dict[str, Any] = {
    "ssast": SsastConfig(**SMALL),
    "ast": AstConfig(**SMALL, num_classes=3),
    "audio_mae": AudioMaeConfig(encoder_layers=2, encoder_embed_dim=24, encoder_attention_heads=3),
    "vit": VitConfig(**SMALL),
}


def save_run(run: Path, encoder: Any, pool: str) -> Path:
    head = HeadConfig(len(LABELS.mids), pool=pool)
    spec = ClassifierSpec(encoder.config, head, LABELS, False, False, clip_samples=16_000)
    classifier = with_random_weights(Classifier(encoder, head))
    state = {
        "model": classifier.state_dict(),
        "task_state": {FINETUNING: spec.to_dict()},
        "optimizer_history": [],
    }
    (run / RUN_FILE).parent.mkdir(parents=True)
    torch.save(state, run / RUN_FILE)
    return run


@pytest.fixture(params=sorted(SYSTEMS))
def finetuned(request, small_config, tmp_path) -> tuple[str, Encoder, Path]:
    """Return a system, an encoder, and a run with a fine-tuned checkpoint of it."""
    system = request.param
    config = CONFIGS.get(system) or small_config()
    encoder = with_random_weights(encoder_only(SYSTEMS[system].network(config))).eval()
    return system, encoder, save_run(tmp_path / "run", encoder, "time_steps")


def assert_same_states(found: Any, encoder: Any) -> None:
    waveform = speech_like(12_000).unsqueeze(0)
    states = encoder.hidden_states(waveform)
    assert len(states) == 2
    for ours, theirs in zip(found.hidden_states(waveform), states, strict=True):
        assert torch.equal(ours, theirs)


def test_commands_accept_encoders_or_refuse_them_in_one_line(mae_ast_command, finetuned, tmp_path):
    system, _, run = finetuned
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
        _, message = mae_ast_command("convert", run, tmp_path / "out", "--to", "hugging-face")
        assert refused in message
        mae_ast.load(run).save_pretrained(tmp_path / "hub")
        _, message = mae_ast_command("predict", tmp_path / "hub", tmp_path / "a.wav")
        assert "not a fine-tuned checkpoint" in message
    assert not (tmp_path / "out").exists()


def test_classifier_in_wrapper_modules_of_torch(finetuned):
    """Load a checkpoint saved by a user's script for several GPUs with a compiled model."""
    _, _, run = finetuned
    waveform = speech_like(12_000).unsqueeze(0)
    expected = load_finetuned(run).scores(waveform)
    state = torch.load(run / RUN_FILE, weights_only=True)
    state["model"] = {f"module._orig_mod.{name}": v for name, v in state["model"].items()}
    torch.save(state, run / RUN_FILE)
    assert torch.equal(load_finetuned(run).scores(waveform), expected)


def test_full_ast_is_loaded_and_exported_to_transformers(mae_ast_command, tmp_path):
    encoder = encoder_only(
        SYSTEMS["ast"].network(AstConfig(**SMALL, input_frames=128, num_classes=2))
    )
    encoder.batch_norm.running_mean.fill_(-6.5)  # as fine-tuning sets it with model.input_mean
    run = save_run(tmp_path / "run", encoder, "encoder")
    waveform = speech_like(12_000).unsqueeze(0)
    expected = load_finetuned(run).model(waveform)

    model = mae_ast.load(run)
    assert (model.labels, model.encoder_only) == (LABELS.names, False)
    assert torch.allclose(model.logits(waveform), expected, atol=1e-6)
    _, message = mae_ast_command("convert", run, tmp_path / "theirs", "--to", "hugging-face")
    assert not message
    assert_same_states(encoder_of(run), model)
    model.save_pretrained(tmp_path / "ours")
    again = load_finetuned(tmp_path / "ours")
    assert (again.description.independent, again.description.multi_label) == (False, False)
    assert torch.allclose(again.scores(waveform), expected.softmax(1), atol=1e-6)
    there = mae_ast.load(tmp_path / "theirs")
    assert there.labels == LABELS.names
    assert torch.allclose(there.logits(waveform), expected, atol=1e-5)
