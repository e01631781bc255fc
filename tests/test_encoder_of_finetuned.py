"""What was fine-tuned is a pretrained model again, of which the encoder is left."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from safetensors.torch import load_file

import mae_ast
from mae_ast.core.checkpoint import FINETUNING, RUN_FILE
from mae_ast.core.classifier import Classifier, HeadConfig
from mae_ast.core.config_ast import AstConfig
from mae_ast.core.config_audio_mae import AudioMaeConfig
from mae_ast.core.config_ssast import SsastConfig
from mae_ast.core.config_vit import VitConfig
from mae_ast.core.encoder import Encoder, encoder_only
from mae_ast.core.labels import Labels
from mae_ast.core.systems import SYSTEMS
from mae_ast.finetuned import Description, encoder_of
from mae_ast.pretrained import CLASSES
from tests.core.vits import SMALL, with_random_weights
from tests.sounds import speech_like

LABELS = Labels(("a", "b"), ("a", "b"))
CONFIGS: dict[str, Any] = {
    "ssast": SsastConfig(**SMALL),
    "ast": AstConfig(**SMALL, num_classes=3),
    "audio_mae": AudioMaeConfig(encoder_layers=2, encoder_embed_dim=24, encoder_attention_heads=3),
    "vit": VitConfig(**SMALL),
}


@pytest.fixture(params=sorted(SYSTEMS))
def finetuned(request, small_config, tmp_path) -> tuple[str, Encoder, Path]:
    """System, encoder, and the run whose last checkpoint holds it, as fine-tuning writes that."""
    system = request.param
    config = CONFIGS.get(system) or small_config()
    encoder = with_random_weights(encoder_only(SYSTEMS[system].network(config))).eval()
    head = HeadConfig(len(LABELS.mids))
    description = Description(
        system, dataclasses.asdict(config), head, LABELS, False, False, clip_samples=16_000
    )
    state = {
        "model": Classifier(encoder, config.encoder_embed_dim, head).state_dict(),
        "task_state": {FINETUNING: description.to_dict()},
        "optimizer_history": [],
    }
    file = tmp_path / "run" / RUN_FILE
    file.parent.mkdir(parents=True)
    torch.save(state, file)
    return system, encoder, tmp_path / "run"


def assert_same_states(found: Any, encoder: Any) -> None:
    waveform = speech_like(12_000).unsqueeze(0)
    states = encoder.hidden_states(waveform)
    assert len(states) == 2
    for ours, theirs in zip(found.hidden_states(waveform), states, strict=True):
        assert torch.equal(ours, theirs)


def test_the_encoder_is_read_and_goes_to_the_hub_s_layout(finetuned, tmp_path):
    system, encoder, run = finetuned
    for source in (run, run / RUN_FILE):
        model = mae_ast.load(source)
        assert type(model) is CLASSES[system]
        assert not model.training
        assert_same_states(model, encoder)
    assert model.extract_features(speech_like(12_000)).pooled.isfinite().all()

    model.save_pretrained(tmp_path / "hub")
    assert set(load_file(tmp_path / "hub" / "model.safetensors")) == set(encoder.state_dict())
    again = mae_ast.load(tmp_path / "hub")
    assert again.encoder_only
    assert_same_states(again, encoder)
    assert_same_states(encoder_of(str(run)), encoder)


def test_commands(mae_ast_command, finetuned, tmp_path):
    system, _, run = finetuned
    soundfile.write(tmp_path / "a.wav", speech_like(16_000).numpy(), 16_000)
    (tmp_path / "train.tsv").write_text(f"{tmp_path}\na.wav\t16000\t16000\n")
    out, message = mae_ast_command("extract", run, tmp_path / "train.tsv", tmp_path / "features")
    assert not message
    assert out.strip().endswith("train_0_1.len")

    alone = "an encoder alone" if system != "vit" else ""
    _, message = mae_ast_command("convert", run, tmp_path / "out", "--to", "released")
    assert alone in message
    if system != "ast":
        _, message = mae_ast_command("reconstruct", run, tmp_path / "a.wav")
        assert alone in message
        assert "mae-ast: error: " in message
    else:
        _, message = mae_ast_command("convert", run, tmp_path / "out", "--to", "hugging-face")
        assert alone in message
    assert not (tmp_path / "out").exists()
