"""Audio-MAE in the published layout: conversion both ways, skipped decoders, errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mae_ast.core.checkpoints.audio_mae_release import AUDIO_MAE, write_audio_mae
from mae_ast.core.models.audio_mae import AudioMae
from mae_ast.core.models.config import AudioMaeConfig
from tests.core.vits import with_random_weights

SMALL: dict[str, Any] = {
    "encoder_layers": 2,
    "encoder_embed_dim": 24,
    "encoder_ffn_embed_dim": 40,
    "encoder_attention_heads": 1,  # as assumed: D / 64, at least one
    "decoder_layers": 2,
    "decoder_embed_dim": 16,
    "decoder_ffn_embed_dim": 32,
    "decoder_attention_heads": 16,
    "decoder_attention": "global",
    "input_frames": 1024,
}
PATH = Path("a.pth")  # of log messages


def build(**fields: Any) -> AudioMae:
    return with_random_weights(AudioMae(AudioMaeConfig(**(SMALL | fields)))).eval()


def written(model: AudioMae) -> dict[str, dict[str, Tensor]]:
    return write_audio_mae(model.config, model.state_dict())


def with_local_decoder(state: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    """Add the keys of the published decoder with Swin V2 blocks to a state dict."""
    weights = dict(state["model"])
    for block in range(2):
        name = f"decoder_blocks.{block}.attn"
        weights[f"{name}.tau"] = torch.ones(2)
        for layer, shape in (("fc1", (256, 2)), ("fc2", (2, 256))):
            weights[f"{name}.meta_mlp.{layer}.weight"] = torch.zeros(shape)
            weights[f"{name}.meta_mlp.{layer}.bias"] = torch.zeros(shape[0])
    return {"model": weights}


@pytest.mark.parametrize("fields", [{}, {"decoder_layers": 0}], ids=str)
def test_round_trip(fields, caplog):
    model = build(**fields)
    state = written(model)
    assert AUDIO_MAE.matches(state) == bool(model.config.decoder_layers)
    found = AUDIO_MAE.read(state, PATH)
    assert not caplog.records
    config, weights = found.config, found.weights
    expected = model.config
    if fields:  # fields of a missing decoder are not stored
        assert (config.decoder_layers, config.encoder_layers) == (0, 2)
    else:
        assert config == expected
    assert weights.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(weights[name], value), name


def test_published_sizes_are_recognised():
    with torch.device("meta"):
        model = AudioMae(AudioMaeConfig(decoder_attention="global"))
        state = {name: torch.empty_like(v) for name, v in model.state_dict().items()}
    weights = write_audio_mae(model.config, state)["model"]
    assert weights["pos_embed"].shape == (1, 513, 768)
    assert weights["decoder_pos_embed"].shape == (1, 513, 512)
    assert weights["patch_embed.proj.weight"].shape == (768, 1, 16, 16)
    assert weights["decoder_pred.weight"].shape == (256, 512)
    assert weights["mask_token"].shape == (1, 1, 512)
    assert weights["decoder_blocks.15.attn.qkv.weight"].shape == (1536, 512)
    assert weights["blocks.11.mlp.fc1.weight"].shape == (3072, 768)
    assert len(weights) == 4 + (12 * 12 + 2) + 2 + (16 * 12 + 2) + 2 * 2


def test_patches_and_patch_values_run_time_first():
    model = build()
    weights = written(model)["model"]
    for t, f in ((0, 0), (3, 9), (15, 15)):
        ours = model.post_extract_proj.weight[:, 16 * t + f]
        assert torch.equal(weights["patch_embed.proj.weight"][:, 0, t, f], ours)
    grid = model.positions((64, 8))[0, 1:].view(64, 8, 24)
    assert torch.equal(weights["pos_embed"][0, 1:].view(64, 8, 24), grid)
    assert not weights["pos_embed"][0, 0].any()


def test_encoder_is_read_and_local_decoder_skipped(caplog):
    model = build()
    state = with_local_decoder(written(model))
    assert AUDIO_MAE.matches(state)
    found = AUDIO_MAE.read(state, PATH)
    assert found.config.decoder_layers == 0
    encoder = AudioMae(found.config)
    encoder.load_state_dict(found.weights)
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    (record,) = caplog.records
    words = record.getMessage()
    num_skipped = sum(name.startswith(("decoder", "mask_token")) for name in state["model"])
    assert words.startswith(f"{PATH}: reading the encoder only")
    assert f"skipped {num_skipped} weights" in words
    assert "mask_token" in words
    assert "attn.meta_mlp.fc1.weight" in words
    assert "attn.tau" in words
    assert "decoder_blocks.*" in words
    assert "decoder_embed.weight" in words
    assert "\n" not in words


def test_window_attention_is_refused():
    model = build(decoder_attention="hybrid", decoder_global_layers=1)
    with pytest.raises(ValueError, match="decoder_attention=hybrid: the published layout"):
        written(model)


@pytest.mark.parametrize(
    "key",
    [
        *("cls_token", "patch_embed.proj.bias", "pos_embed", "blocks.0.mlp.fc1.weight"),
        *("decoder_blocks.1.attn.qkv.bias", "decoder_blocks.0.mlp.fc1.weight", "mask_token"),
        *("decoder_embed.weight", "decoder_pos_embed", "norm.weight"),
    ],
)
@pytest.mark.parametrize("local", [False, True])
def test_missing_and_misshapen_keys_are_named(key, local):
    state = written(build())["model"]
    if local:
        state = with_local_decoder({"model": state})["model"]
        if key.startswith(("decoder", "mask")):
            return  # skipped in any case
    missing = {name: value for name, value in state.items() if name != key}
    with pytest.raises(ValueError, match=rf"missing: .*{key}"):
        AUDIO_MAE.read({"model": missing}, PATH)
    shape = state[key].shape
    for wrong in (torch.zeros(*shape[:-1], shape[-1] + 1), "no tensor"):
        with pytest.raises(ValueError, match=key):
            AUDIO_MAE.read({"model": state | {key: wrong}}, PATH)


def test_unknown_key_is_named():
    state = written(build())["model"] | {"decoder_blocks.0.ls1.gamma": torch.zeros(24)}
    with pytest.raises(ValueError, match=r"unknown: decoder_blocks\.0\.ls1\.gamma$"):
        AUDIO_MAE.read({"model": state}, PATH)


@pytest.mark.parametrize("key", ["pos_embed", "decoder_pos_embed"])
def test_other_positions_are_refused(key):
    state = written(build())["model"]
    state[key] = state[key] + 0.01
    with pytest.raises(ValueError, match=f"^{key} .*positions"):
        AUDIO_MAE.read({"model": state}, PATH)
    state[key] = state[key][:, :-8]
    with pytest.raises(ValueError, match=key):
        AUDIO_MAE.read({"model": state}, PATH)
