"""Audio-MAE through the generic interface: load, features, reconstruct, convert, fine-tune."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch

import mae_ast
from mae_ast.core.checkpoints.audio_mae_release import write_audio_mae
from mae_ast.core.checkpoints.timm import to_timm
from mae_ast.core.models.config import AudioMaeConfig, VitConfig
from mae_ast.core.models.encoder import Encoder, encoder_only
from mae_ast.finetune import initialize
from mae_ast.finetune.initialize import fitted
from mae_ast.hub.load import PretrainedAudioMae
from tests.core.vits import with_random_weights
from tests.sounds import speech_like

# D / 64 heads, as assumed for the published layout, which does not store their number.
SMALL: dict[str, Any] = {
    "encoder_layers": 2,
    "encoder_embed_dim": 24,
    "encoder_ffn_embed_dim": 48,
    "encoder_attention_heads": 1,
    "decoder_layers": 2,
    "decoder_embed_dim": 32,
    "decoder_ffn_embed_dim": 40,
}
PUBLISHED = SMALL | {"decoder_attention": "global", "input_frames": 1024}


def audio_mae(**fields: Any) -> PretrainedAudioMae:
    config = AudioMaeConfig(**(SMALL | fields))
    return with_random_weights(PretrainedAudioMae(config, "random_mask")).eval()


def published(path: Path) -> PretrainedAudioMae:
    """Save a model as its authors do, with their other entries, and return it."""
    model = audio_mae(**PUBLISHED)
    state: dict[str, Any] = dict(write_audio_mae(model.config, model.state_dict()))
    state |= {"epoch": 32, "args": argparse.Namespace(norm_pix_loss=True, blr=2e-4)}
    torch.save(state, path)
    return model


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    path = tmp_path / "a.wav"
    soundfile.write(path, speech_like(20_000).numpy(), 16_000)
    return path


def assert_same(found: Any, model: Any) -> None:
    assert type(found) is type(model)
    assert found.config == model.config
    assert found.mask_type == model.mask_type
    assert not found.training
    assert found.state_dict().keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name


def test_published_file_round_trip(mae_ast_command, tmp_path):
    path, again = tmp_path / "audio_mae.pth", tmp_path / "again.pth"
    model = published(path)
    assert_same(mae_ast.load(path), model)
    _, message = mae_ast_command("convert", path, again, "--to", "released")
    assert not message, message
    with torch.serialization.safe_globals([argparse.Namespace]):
        first = torch.load(path, weights_only=True)["model"]
    second = torch.load(again, weights_only=True)["model"]
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_encoder_of_a_published_local_decoder_is_loaded(tmp_path, caplog, sound, mae_ast_command):
    path = tmp_path / "local.pth"
    full = published(path)
    weights = write_audio_mae(full.config, full.state_dict())["model"]
    weights["decoder_blocks.0.attn.tau"] = torch.ones(16)
    weights["decoder_blocks.0.attn.meta_mlp.fc1.weight"] = torch.ones(256, 2)
    torch.save({"model": weights}, path)
    model = mae_ast.load(path)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    message = record.getMessage()
    assert message.startswith(f"{path}: reading the encoder only")
    assert "attn.tau" in message
    assert "attn.meta_mlp.fc1.weight" in message
    assert model.config.decoder_layers == 0
    wave = speech_like(16_000).unsqueeze(0)
    for ours, theirs in zip(model.hidden_states(wave), full.hidden_states(wave), strict=True):
        assert torch.equal(ours, theirs)
    _, message = mae_ast_command("reconstruct", path, sound, "-o", tmp_path / "a.png")
    assert "decoder_layers=0; predicting patches needs a decoder" in message


def test_missing_weight_is_named(tmp_path):
    path = tmp_path / "a.pth"
    model = published(path)
    state = write_audio_mae(model.config, model.state_dict())
    del state["model"]["blocks.1.attn.qkv.weight"]
    torch.save(state, path)
    with pytest.raises(ValueError, match=r"a\.pth: .*missing: blocks\.1\.attn\.qkv\.weight"):
        mae_ast.load(path)


def test_local_decoder_is_not_exported_to_the_published_layout(mae_ast_command, tmp_path):
    audio_mae().save_pretrained(tmp_path / "a")
    _, message = mae_ast_command("convert", tmp_path / "a", tmp_path / "b.pth", "--to", "released")
    assert (
        "decoder_attention=local: the published layout supports decoder_attention=global" in message
    )
    assert not (tmp_path / "b.pth").exists()


def test_reconstruct(mae_ast_command, tmp_path, sound):
    audio_mae(input_frames=1024).save_pretrained(tmp_path / "a")
    image = tmp_path / "a.png"
    out, message = mae_ast_command("reconstruct", tmp_path / "a", sound, "-o", image)
    assert not message, message
    assert "80% masked" in out or "81% masked" in out, out
    assert image.stat().st_size > 5_000


# Initialisation


def test_learned_positions_are_initialised_from_the_fixed_ones():
    pretrained = encoder_only(audio_mae())
    config = VitConfig(
        **{k: v for k, v in SMALL.items() if k.startswith("encoder")},
        prefix_tokens=1,
        position_frames=1024,
    )
    model = Encoder(config).eval()
    model.load_state_dict(fitted(pretrained.state_dict(), pretrained.config, config))
    wave = speech_like(1024 * 160 + 240).unsqueeze(0)
    for ours, theirs in zip(model.hidden_states(wave), pretrained.hidden_states(wave), strict=True):
        assert torch.equal(ours, theirs)


def image_net() -> Any:
    """Build a timm network for RGB images of 64 x 64."""
    pytest.importorskip("timm")
    from timm.models.vision_transformer import VisionTransformer

    return with_random_weights(
        VisionTransformer(img_size=64, embed_dim=24, depth=2, num_heads=1, mlp_ratio=2)
    ).eval()


def test_encoder_is_initialised_from_timm(tmp_path):
    theirs = image_net()
    path = tmp_path / "images.pth"
    torch.save(theirs.state_dict(), path)
    model = audio_mae(input_frames=1024)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    initialize.start_encoder(model, str(path))
    after = model.state_dict()
    for name, value in before.items():
        is_theirs = name.startswith(("encoder.", "post_extract", "prefix"))
        assert torch.equal(after[name], value) != is_theirs, name
    assert torch.equal(after["prefix_tokens"], theirs.cls_token + theirs.pos_embed[:, :1])
    kernel = theirs.patch_embed.proj.weight.mean(1)  # (D, mel, time)
    ours = after["post_extract_proj.weight"].unflatten(1, (16, 16))
    torch.testing.assert_close(ours, kernel.transpose(1, 2), rtol=0, atol=1e-6)
    # Equal blocks: the same tokens give the same output.
    tokens = torch.randn(2, 9, 24)
    with torch.no_grad():
        expected = theirs.norm(theirs.blocks(tokens))
    torch.testing.assert_close(model.encoder(tokens), expected, rtol=0, atol=1e-4)


def test_invalid_encoder_weights_are_named(tmp_path):
    model = audio_mae()
    with pytest.raises(ValueError, match=r"model\.encoder_weights=nothing\.pth: .*timm:"):
        initialize.start_encoder(model, "nothing.pth")
    config = VitConfig(encoder_layers=3, encoder_embed_dim=24, encoder_attention_heads=1)
    torch.save(to_timm(config, Encoder(config).state_dict()), tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"encoder_weights=.*a\.pth: encoder_layers=2 differs"):
        initialize.start_encoder(model, str(tmp_path / "a.pth"))
