"""Classifier: masked bands, frozen encoder, learning rate decay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mae_ast.core.frontend.fbank import fbank
from mae_ast.core.models.ast import Ast
from mae_ast.core.models.classifier import Classifier, HeadConfig
from mae_ast.core.models.config import AstConfig, MaeAstConfig, VitConfig
from mae_ast.core.models.encoder import Encoder, encoder_only, mark_weight_decay
from mae_ast.core.models.mae_ast import MaeAst
from tests.core.vits import SMALL

Build = Callable[..., Classifier]


@pytest.fixture
def build(small_config: Callable[..., MaeAstConfig]) -> Build:
    """Return ``build(kind=..., pool=..., freeze_encoder=..., **config_fields)``."""

    def build(
        kind: str = "linear", pool: str = "time_steps", freeze_encoder: bool = False, **fields: Any
    ) -> Classifier:
        config = small_config(**({"input_mean": -6.0, "input_std": 3.0} | fields))
        head = HeadConfig(5, kind, pool)
        return Classifier(encoder_only(MaeAst(config)), head, freeze_encoder)

    return build


def test_masked_bands_do_not_influence_the_logits(build: Build) -> None:
    model = build().eval()
    log_mel = fbank(torch.randn(2, 16_000) * 0.1)
    hidden = torch.tensor([[[32, 48], [16, 48]], [[0, 0], [0, 0]]])
    other = log_mel.clone()
    other[:, :, 32:48] += 1
    other[:, 16:48] -= 2
    one, two = model(log_mel, None, hidden), model(other, None, hidden)
    torch.testing.assert_close(one[0], two[0])
    assert not torch.allclose(one[1], two[1])
    # Also in a part that the model crops, and for waveforms with padding.
    cropping = build(input_frames=30).eval()
    assert bool(cropping(log_mel, None, hidden + 40).isfinite().all())
    waves = torch.randn(2, 16_000) * 0.1
    lengths = torch.tensor([16_000, 9_000])
    torch.testing.assert_close(
        model(waves, lengths, torch.zeros(2, 2, 2).long()), model(waves, lengths)
    )


def test_frozen_encoder_is_not_trained(build: Build) -> None:
    model = build(freeze_encoder=True, dropout=0.5).train()
    assert model.head.training
    assert not model.encoder.training
    source = torch.randn(2, 9_000)
    assert torch.equal(model.pooled(source), model.pooled(source))
    model(source).sum().backward()
    assert all(p.grad is None for p in model.encoder.parameters())
    assert all(p.grad is not None for p in model.head.parameters())


def test_input_statistics_stay_fixed(build: Build) -> None:
    model = build().train()
    before = {name: value.clone() for name, value in model.encoder.batch_norm.named_buffers()}
    model(torch.randn(2, 9_000))
    for name, value in model.encoder.batch_norm.named_buffers():
        assert torch.equal(value, before[name])


def test_layer_wise_learning_rate_decay(build: Build) -> None:
    model = build(layer_norm_first=True, encoder_layers=3)
    model.scale_learning_rates(0.5, head_scale=4.0)
    scales = {name: p.lr_scale for name, p in model.named_parameters()}
    assert scales["head.2.weight"] == 4
    assert scales["encoder.encoder.layer_norm.weight"] == 1
    layers = [scales[f"encoder.encoder.layers.{n}.fc1.weight"] for n in range(3)]
    assert layers == [0.125, 0.25, 0.5]
    assert scales["encoder.post_extract_proj.weight"] == 0.0625
    post = build()
    post.scale_learning_rates(0.5)
    assert post.encoder.encoder.layer_norm.weight.lr_scale == 0.125  # before two layers
    assert model.head[2].bias.no_decay
    assert not model.head[2].weight.no_decay
    with pytest.raises(ValueError, match="layer_decay=0"):
        model.scale_learning_rates(0.0)
    with pytest.raises(ValueError, match="head_lr_scale=-1"):
        model.scale_learning_rates(1.0, -1)


def test_bfloat16_is_close_to_float32(build: Build) -> None:
    model = build().eval()
    source = torch.randn(2, 9_000) * 0.1
    exact = model(source)
    model.encoder.precision = "bfloat16"
    rough = model(source)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, atol=0.02, rtol=0.1)
    assert not torch.equal(rough, exact)


@pytest.mark.parametrize("pool", ["prefix", "tokens"])
def test_pooling_of_the_encoder(build: Build, pool: str) -> None:
    encoder = encoder_only(Ast(AstConfig(**SMALL, pool=pool)))
    model = Classifier(encoder, HeadConfig(5, pool="encoder")).eval()
    source = torch.randn(2, 9_000) * 0.1
    encoded = encoder.encode(source)
    tokens = encoded.prefix if pool == "prefix" else encoded.patches
    torch.testing.assert_close(model(source), model.head(tokens.mean(1)))
    plain = build(pool="encoder").eval()  # MAE-AST averages its patch tokens
    torch.testing.assert_close(plain.pooled(source), plain.encoder.encode(source).patches.mean(1))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((0,), "num_classes=0"),
        ((2, "deep"), "linear, mlp"),
        ((2, "mlp", "max"), "time_steps, tokens, encoder"),
        ((2, "mlp", "tokens", 1.0), "head dropout=1.0"),
    ],
)
def test_invalid_heads_are_refused(values: tuple[Any, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        HeadConfig(*values)


def test_weight_decay_applies_to_matrices_only():
    model = Encoder(VitConfig(**SMALL))
    mark_weight_decay(model)
    decayed = {name for name, p in model.named_parameters() if not p.no_decay}
    assert decayed == {
        "post_extract_proj.weight",
        *(
            f"encoder.layers.{n}.{part}.weight"
            for n in range(2)
            for part in (*(f"self_attn.{x}_proj" for x in ("q", "k", "v", "out")), "fc1", "fc2")
        ),
    }
