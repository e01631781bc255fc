"""Checkpoints load equally from the wrappers of other training code."""

from __future__ import annotations

import dataclasses
import logging
from argparse import Namespace
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from mae_ast.core.checkpoints.ast_release import write_ast, write_ssast
from mae_ast.core.checkpoints.audio_mae_release import write_audio_mae
from mae_ast.core.checkpoints.reader import (
    CheckpointError,
    build_with_weights,
    read_checkpoint,
)
from mae_ast.core.checkpoints.wrappers import unwrap
from mae_ast.core.models.ast import Ast
from mae_ast.core.models.audio_mae import AudioMae
from mae_ast.core.models.config import AstConfig, AudioMaeConfig, SsastConfig
from mae_ast.core.models.mae_ast import MaeAst
from mae_ast.core.models.ssast import Ssast
from tests.core.vits import FRAME_TOKENS, SMALL, with_random_weights
from tests.sounds import speech_like

PUBLISHED = SMALL | {"encoder_attention_heads": 1, "input_frames": 128}
AUDIO_MAE: dict[str, Any] = {
    "encoder_layers": 1,
    "encoder_embed_dim": 24,
    "encoder_ffn_embed_dim": 40,
    "encoder_attention_heads": 1,
    "decoder_layers": 1,
    "decoder_embed_dim": 16,
    "decoder_ffn_embed_dim": 32,
    "decoder_attention_heads": 16,
    "decoder_attention": "global",
    "input_frames": 1024,
}
Weights = dict[str, Tensor]


def prefixed(prefix: str) -> Callable[[Weights], dict[str, Any]]:
    return lambda weights: {prefix + name: value for name, value in weights.items()}


def below(key: str, **others: Any) -> Callable[[Weights], dict[str, Any]]:
    return lambda weights: {**others, key: weights}


def compiled_layers(weights: Weights) -> dict[str, Any]:
    """Rename weights as ``layer = torch.compile(layer)`` does for each layer."""
    inside = {}
    for name, value in weights.items():
        parts = name.split(".")
        at = next((n + 1 for n, part in enumerate(parts) if part.isdigit()), 0)
        inside[".".join([*parts[:at], "_orig_mod", *parts[at:]])] = value
    return inside


WRAPPERS: dict[str, Callable[[Weights], dict[str, Any]]] = {
    "bare": dict,
    "DataParallel": prefixed("module."),
    "torch.compile": prefixed("_orig_mod."),
    "compiled in DataParallel": prefixed("module._orig_mod."),
    "DataParallel in compiled": prefixed("_orig_mod.module."),
    "compiled layers": compiled_layers,
    "FSDP": prefixed("_fsdp_wrapped_module."),
    "model": below("model", epoch=3, args=Namespace(lr=0.1)),
    "model_state_dict": below("model_state_dict", best_score=np.float64(0.5)),
    "net": below("net", history=np.arange(3)),
    "two keys": lambda weights: {"state_dict": {"model": weights}, "epoch": torch.tensor(3)},
    "Lightning": lambda weights: {
        "epoch": 1,
        "state_dict": prefixed("model.")(weights),
        "hyper_parameters": {"model": {"depth": 2}, "lr": np.float32(1e-4)},
    },
    "Lightning of DataParallel": lambda weights: {
        "state_dict": prefixed("net.module.")(weights),
        "loops": {},
    },
    "NumPy arrays": lambda weights: {name: value.numpy() for name, value in weights.items()},
}


@cache
def published(system: str) -> tuple[Any, Weights]:
    """Return a model, and its weights in the published layout without any wrapper."""
    if system == "ssast":
        model: Any = with_random_weights(Ssast(SsastConfig(**PUBLISHED)))
        return model, unwrap(write_ssast(model.config, model.state_dict()))["model"]
    if system == "ast":
        model = with_random_weights(Ast(AstConfig(**PUBLISHED, num_classes=3)))
        return model, unwrap(write_ast(model.config, model.state_dict()))["model"]
    model = with_random_weights(AudioMae(AudioMaeConfig(**AUDIO_MAE)))
    return model, write_audio_mae(model.config, model.state_dict())["model"]


def assert_reads_as(path: Path, model: Any) -> None:
    found = read_checkpoint(path)
    assert found.config == model.config
    loaded = build_with_weights(lambda: type(model)(found.config), found.weights, path)
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


@pytest.mark.parametrize("system", ["ssast", "ast", "audio_mae"])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_published_model_in_a_wrapper(tmp_path, system, wrapper):
    model, weights = published(system)
    torch.save(WRAPPERS[wrapper](weights), tmp_path / "a.pth")
    assert_reads_as(tmp_path / "a.pth", model)


@pytest.mark.parametrize(
    "wrapper", ["DataParallel", "torch.compile", "compiled in DataParallel", "compiled layers"]
)
def test_own_checkpoint_in_a_wrapper(tmp_path, small_config, wrapper):
    model = with_random_weights(MaeAst(small_config()))
    cfg = {"model": dataclasses.asdict(model.config), "task": {"mask_type": "chunk_mask"}}
    state = {"cfg": cfg, "model": WRAPPERS[wrapper](model.state_dict()), "best": np.float64(0.5)}
    torch.save(state, tmp_path / "a.pt")
    assert_reads_as(tmp_path / "a.pt", model)


def test_wrapper_modules_of_torch(tmp_path, small_config):
    """Nothing is compiled here, as no forward pass is run."""
    model = with_random_weights(MaeAst(small_config()))
    cfg = {"model": dataclasses.asdict(model.config), "task": {"mask_type": "chunk_mask"}}
    wrapped = torch.compile(nn.DataParallel(model))
    names = list(wrapped.state_dict())
    assert all(name.startswith("_orig_mod.module.") for name in names)
    torch.save({"cfg": cfg, "model": wrapped.state_dict()}, tmp_path / "a.pt")
    assert_reads_as(tmp_path / "a.pt", model)


def test_numpy_1_numbers_are_read(tmp_path, small_config):
    """NumPy 1 pickles them with a module name that NumPy 2 changed."""
    model, weights = published("ast")
    path, old = tmp_path / "new.pth", tmp_path / "old.pth"
    torch.save(
        {"model": weights, "best": np.float64(0.5)}, path, _use_new_zipfile_serialization=False
    )
    content = path.read_bytes()
    assert content.count(b"numpy._core.multiarray") == 1
    old.write_bytes(content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert_reads_as(old, model)


def test_prefixes_are_kept_if_names_would_collide():
    two = {"module.a": torch.zeros(1), "module._orig_mod.a": torch.ones(1)}
    assert unwrap(two)["model"].keys() == two.keys()


@pytest.mark.parametrize("content", [{}, {"a": 1}, {"cfg": {}, "model": {}}, {"model": "vit"}])
def test_content_without_weights_is_unchanged(content):
    assert unwrap(content) == content


def test_recursive_content_terminates():
    content: dict[str, Any] = {"epoch": 1}
    content["model"] = content
    assert unwrap(content) == content


def test_weights_of_unknown_network_are_named(tmp_path):
    torch.save({"state_dict": {"conv1.weight": torch.zeros(2)}}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"has no 'cfg'; its 1 weights \(conv1\.weight, "):
        read_checkpoint(tmp_path / "a.pt")


# AST and fine-tuned SSAST share a layout


def classifier(bias: float | None, **fields: Any) -> tuple[AstConfig, dict[str, Tensor]]:
    """Return a file in AST's layout, including timm's image classifier."""
    model = with_random_weights(Ast(AstConfig(**(PUBLISHED | {"num_classes": 3} | fields))))
    state = write_ast(model.config, model.state_dict())
    if bias is not None:
        for head in ("head", "head_dist"):
            state[f"module.v.{head}.weight"] = torch.ones(10, 24)
            state[f"module.v.{head}.bias"] = torch.full((10,), bias)
    return model.config, state


@pytest.mark.parametrize(
    ("bias", "pool", "warning"),
    [
        (0.5, "prefix", ""),
        (0.0, "tokens", "for a SSAST, pool='tokens'. If it is AST"),
        (None, "prefix", "for AST, pool='prefix'. If it is a fine-tuned SSAST"),
    ],
    ids=["from images", "from random weights", "unknown"],
)
def test_ast_is_distinguished_from_finetuned_ssast(tmp_path, caplog, bias, pool, warning):
    _, state = classifier(bias)
    torch.save(state, tmp_path / "a.pth")
    with caplog.at_level(logging.WARNING):
        found = read_checkpoint(tmp_path / "a.pth")
    assert found.config.pool == pool
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == bool(warning)
    assert warning in "".join(messages)
    assert all(m.startswith(f"{tmp_path / 'a.pth'}: ") and "\n" not in m for m in messages)


def test_finetuned_frame_ssast_is_unambiguous(tmp_path, caplog):
    """Frame models are fine-tuned with a stride of 1 by their authors."""
    fields = FRAME_TOKENS | {"ast_kernel_stride_time": 1, "pool": "tokens"}
    config, state = classifier(None, **fields)
    torch.save(state, tmp_path / "a.pth")
    found = read_checkpoint(tmp_path / "a.pth")
    assert found.config == config
    assert not caplog.records


def test_classifier_that_pools_the_patch_tokens():
    model = with_random_weights(Ast(AstConfig(**PUBLISHED, num_classes=3, pool="tokens"))).eval()
    wave = speech_like(16_000)[None]
    expected = model.head(model.encode(wave).patches.mean(1))
    assert_close(model.logits(wave), expected, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="pool='cls'; must be one of prefix, tokens"):
        AstConfig(pool="cls")
