"""MAE-AST: its decoder, its initial weights, half precision."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from mae_ast.core.models.config import MaeAstConfig
from mae_ast.core.models.mae_ast import MaeAst
from tests.core.vits import Clips, loss_of

STATS = {"input_stats": "fixed", "input_mean": -8.0, "input_std": 4.0}


def build(config: MaeAstConfig) -> MaeAst:
    """Build a model with weights larger than at initialisation, so that errors are visible."""
    model = MaeAst(config)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.15)
            nn.init.normal_(module.bias, std=0.1)
        if isinstance(module, nn.LayerNorm):
            nn.init.normal_(module.weight, mean=1.0, std=0.1)
            nn.init.normal_(module.bias, std=0.1)
    return model


def test_encoder_processes_the_visible_patches_only(small_config):
    model = build(small_config())
    clips, caught = Clips(model, 8_000, 8_000), []
    model.encoder.register_forward_hook(lambda *args: caught.append(args[2]))
    clips.predict(model)
    assert caught[0].shape == (2, clips.mask.visible_ids.shape[1], 32)


def test_bfloat16_is_close_to_float32_with_losses_and_parameters_in_float32(small_config):
    config = small_config(encoder_layers=4, decoder_embed_dim=48, decoder_attention_heads=4)
    exact = build(config).train()
    model = MaeAst(dataclasses.replace(config, precision="bfloat16")).train()
    model.load_state_dict(exact.state_dict())
    for lengths in ((16_000, 16_000), (16_000, 5_000)):
        clips = Clips(model, *lengths)
        prediction = clips.predict(model)
        assert prediction.reconstruction.dtype == torch.bfloat16
        assert prediction.target.dtype == torch.float32
        loss, expected = loss_of(prediction), loss_of(clips.predict(exact))
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(expected.item(), rel=2e-3)
        assert loss.item() != expected.item()
        loss.backward()
        expected.backward()
        for (name, ours), theirs in zip(model.named_parameters(), exact.parameters(), strict=True):
            assert ours.dtype == ours.grad.dtype == torch.float32, name
            if not name.endswith("k_proj.bias"):
                error = (ours.grad - theirs.grad).norm() / theirs.grad.norm()
                assert error < 0.05, name
    assert model.batch_norm.running_mean.dtype == torch.float32
    assert torch.equal(model.batch_norm.running_mean, exact.batch_norm.running_mean)


def test_autocast_from_outside_reaches_the_transformer_only(small_config):
    """The trainer does this with ``common.amp``."""
    config = small_config()
    model = build(config).eval()
    clips = Clips(model, 8_000, 8_000)
    expected = clips.predict(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        prediction = clips.predict(model)
    assert prediction.reconstruction.dtype == torch.bfloat16
    assert torch.equal(prediction.target, expected.target)
    error = prediction.reconstruction.float() - expected.reconstruction
    assert 0 < error.norm() < 0.02 * expected.reconstruction.norm()


@pytest.mark.parametrize("lengths", [(8_000, 8_000), (8_000, 3_000)], ids=str)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_half_precision_model_runs_and_trains(small_config, lengths, precision):
    config = small_config(precision=precision)
    model = build(config).train()
    clips = Clips(model, *lengths)
    expected = loss_of(clips.predict(model)).item()
    model.half()
    prediction = clips.predict(model)
    assert prediction.reconstruction.dtype == torch.float16
    assert prediction.target.dtype == torch.float32
    loss = loss_of(clips.predict(model))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=1e-2)
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.dtype == torch.float16, name
        assert bool(torch.isfinite(parameter.grad).all()), name


def test_input_dropout_acts_in_training_only(small_config):
    config = small_config(dropout_input=0.5, **STATS)
    model = build(config)
    plain = build(small_config(**STATS))
    plain.load_state_dict(model.state_dict())
    clips = Clips(model, 8_000)
    first, second = (loss_of(clips.predict(model.train())).item() for _ in range(2))
    assert first != second
    assert loss_of(clips.predict(model.eval())) == loss_of(clips.predict(plain.eval()))


def test_layerdrop_reaches_encoder_and_decoder(small_config):
    for key in ("encoder_layerdrop", "decoder_layerdrop"):
        model = MaeAst(small_config(**{key: 0.9}))
        stacks = {"encoder_layerdrop": model.encoder, "decoder_layerdrop": model.decoder}
        assert stacks.pop(key).layerdrop == 0.9
        assert stacks.popitem()[1].layerdrop == 0.0


def test_initialisation():
    model = MaeAst(MaeAstConfig(encoder_layers=1, decoder_layers=1))
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert bool((parameter == (1.0 if name.endswith("weight") else 0.0)).all()), name
        elif name.endswith("bias"):
            assert not parameter.any(), name
        elif name != "decoder_mask_emb":
            assert parameter.std().item() == pytest.approx(0.02, rel=0.02), name
    mask_token = model.decoder_mask_emb
    assert mask_token.min() >= 0
    assert mask_token.max() <= 1
    assert mask_token.mean().item() == pytest.approx(0.5, abs=0.05)


def test_different_widths_add_one_projection(small_config):
    same = MaeAst(small_config()).state_dict().keys()
    other = MaeAst(small_config(decoder_embed_dim=48)).state_dict().keys()
    assert other - same == {"post_enc_proj.weight", "post_enc_proj.bias"}
    assert same <= other


def test_decoder_sizes_default_to_those_of_the_encoder(small_config):
    for fields, ffn, heads in [
        ({}, 64, 4),
        ({"decoder_ffn_embed_dim": 20, "decoder_attention_heads": 8}, 20, 8),
    ]:
        model = MaeAst(small_config(decoder_embed_dim=48, decoder_layers=3, **fields))
        assert len(model.encoder.layers) == 2
        assert len(model.decoder.layers) == 3
        for layer in model.decoder.layers:
            assert layer.fc1.weight.shape == (ffn, 48)
            assert layer.self_attn.num_heads == heads
        for layer in model.encoder.layers:
            assert layer.fc1.weight.shape == (64, 32)
            assert layer.self_attn.num_heads == 4


def test_decoder_whose_heads_do_not_divide_its_width_is_refused(small_config):
    message = "decoder_embed_dim=32; .*decoder_attention_heads=7"
    with pytest.raises(ValueError, match=message):
        small_config(decoder_attention_heads=7)
