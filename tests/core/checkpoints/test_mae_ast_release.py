"""The released MAE-AST layout, as stock s3prl reads it: keys, outputs, round trips, errors."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from mae_ast.core.checkpoints.mae_ast_release import EXTRAS, MAX_TOKENS, to_released
from mae_ast.core.checkpoints.reader import (
    CheckpointError,
    build_with_weights,
    read_checkpoint,
)
from mae_ast.core.models.config import MaeAstConfig
from mae_ast.core.models.mae_ast import MaeAst
from tests.sounds import speech_like

NAMES = Path(__file__).parent / "released_checkpoint_keys.txt"
PATCH, FRAME = (16, 16), (2, 128)
SECONDS = (0.3, 1.0, 9.97, 20.0)


def test_keys_shapes_and_dtypes_match_a_released_file() -> None:
    with torch.device("meta"):
        model = MaeAst(MaeAstConfig())
        state = to_released(model.config, "chunk_mask", model.state_dict())["model"]
    ours = sorted(
        f"{key}\t{tuple(value.shape)}\t{str(value.dtype).removeprefix('torch.')}"
        for key, value in state.items()
    )
    assert len(ours) == 243
    assert ours == sorted(NAMES.read_text().splitlines())


def random_model(config: MaeAstConfig) -> MaeAst:
    model = MaeAst(config).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                value += 0.1 * torch.randn_like(value)
    model.batch_norm.running_mean.fill_(-7.0)
    model.batch_norm.running_var.fill_(14.0)
    return model


def fields(kernel: tuple[int, int]) -> dict[str, int]:
    return {
        f"ast_kernel_{what}_{axis}": size
        for what in ("size", "stride")
        for axis, size in zip(("time", "chan"), kernel, strict=True)
    }


@pytest.mark.parametrize("kernel", [PATCH, FRAME], ids=["patch", "frame"])
def test_stock_s3prl_computes_the_same_features(tmp_path, kernel):
    hubconf = pytest.importorskip("s3prl.upstream.mae_ast.hubconf", reason="needs s3prl")
    hubconf = pytest.importorskip("s3prl.upstream.mae_ast.hubconf", reason="needs s3prl")
    config = MaeAstConfig(
        encoder_layers=3,
        encoder_embed_dim=96,
        encoder_ffn_embed_dim=128,
        encoder_attention_heads=4,
        decoder_embed_dim=64,
        **fields(kernel),
    )
    model = random_model(config)
    path = tmp_path / "released.pt"
    torch.save(to_released(config, "chunk_mask", model.state_dict()), path)
    expert = hubconf.mae_ast_local(str(path)).eval()
    for seed, seconds in enumerate(SECONDS):
        wave = speech_like(round(16_000 * seconds), seed)
        with torch.no_grad():
            ours = model.hidden_states(wave.unsqueeze(0))
            theirs = expert([wave])["hidden_states"]
        assert len(ours) == len(theirs) == 3
        for one, other in zip(ours, theirs, strict=True):
            assert_close(one.reshape_as(other), other, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_round_trip(tmp_path, small_config, dtype):
    model = random_model(small_config(mask_length=7))
    state = to_released(model.config, "random_mask", model.state_dict())
    state["model"] = {
        name: value.to(dtype) if value.is_floating_point() else value
        for name, value in state["model"].items()
    }
    path = tmp_path / "a.pt"
    torch.save(state, path)
    found = read_checkpoint(path)
    assert found.config == dataclasses.replace(model.config, input_stats="batch")
    assert found.mask_type == "random_mask"
    back = build_with_weights(lambda: MaeAst(found.config), found.weights, path)
    for name, value in model.state_dict().items():
        assert torch.equal(back.state_dict()[name], value.to(dtype).to(value.dtype)), name


@pytest.fixture
def state(small_config):
    model = MaeAst(small_config())
    return to_released(model.config, "random_mask", model.state_dict())


def test_only_the_five_extra_entries_are_dropped(tmp_path, state):
    state["model"]["layer_norm.scale"] = torch.zeros(1)
    torch.save(state, tmp_path / "a.pt")
    found = read_checkpoint(tmp_path / "a.pt")
    assert not set(found.weights) & set(EXTRAS)
    with pytest.raises(CheckpointError, match=r"unknown: layer_norm\.scale$"):
        build_with_weights(lambda: MaeAst(found.config), found.weights, "a.pt")


@pytest.mark.parametrize(
    ("part", "key", "value", "message"),
    [
        ("model", "enc_sine_pos", False, "enc_sine_pos=False"),
        ("model", "dec_conv_pos", True, "dec_conv_pos=True"),
        ("model", "activation_fn", "relu", "activation_fn='relu'"),
        ("task", "feature_dim", 80, "feature_dim=80"),
        ("task", "sample_rate", 8_000, "sample_rate=8000"),
    ],
)
def test_unsupported_settings_are_refused(tmp_path, state, part, key, value, message):
    state["cfg"][part][key] = value
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=rf"a\.pt: was trained with {message}"):
        read_checkpoint(tmp_path / "a.pt")


def test_other_positions_are_refused(tmp_path, state):
    state["model"]["enc_sine_pos_embed.pe"] = torch.rand(1, MAX_TOKENS, 32)
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"enc_sine_pos_embed\.pe .*positions"):
        read_checkpoint(tmp_path / "a.pt")


def test_decoder_sizes_that_the_layout_cannot_store_are_refused(small_config):
    model = MaeAst(small_config(decoder_ffn_embed_dim=48))
    with pytest.raises(ValueError, match="decoder_ffn_embed_dim=48 differs from encoder_ffn"):
        to_released(model.config, "random_mask", model.state_dict())
