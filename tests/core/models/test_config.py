"""An invalid configuration is refused with the key, its value and what is valid."""

from __future__ import annotations

import dataclasses

import pytest

from mae_ast.core.frontend.patches import PatchShape
from mae_ast.core.models.config import MaeAstConfig


def test_default_configuration_is_valid():
    config = MaeAstConfig()
    config.check_pretraining("chunk_mask")
    assert config.patch_shape == PatchShape(time=16, mel=16)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ast_kernel_size_chan": 48, "ast_kernel_stride_chan": 48}, "48 mel bins does not divide"),
        ({"encoder_layers": 0}, "encoder_layers=0"),
        ({"decoder_layers": -1}, "decoder_layers=-1"),
        ({"input_stats": "running"}, "input_stats='running'; must be one of batch, fixed"),
        ({"precision": "fp16"}, "precision='fp16'; must be one of auto, float32, bfloat16"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"attention_dropout": -0.1}, "attention_dropout=-0.1"),
        ({"activation_dropout": 2}, "activation_dropout=2"),
        ({"dropout_input": 1}, "dropout_input=1"),
        ({"encoder_layerdrop": 1.0}, "encoder_layerdrop=1.0"),
        ({"decoder_layerdrop": float("nan")}, "decoder_layerdrop=nan"),
        ({"mask_length": 0}, "mask_length=0"),
        ({"encoder_layers": "2"}, "encoder_layers='2'; must be an integer"),
        ({"encoder_embed_dim": 0}, "encoder_embed_dim=0"),
        ({"decoder_embed_dim": -4}, "decoder_embed_dim=-4"),
        ({"encoder_ffn_embed_dim": 0}, "encoder_ffn_embed_dim=0"),
        ({"decoder_ffn_embed_dim": 0}, "decoder_ffn_embed_dim=0"),
        ({"encoder_attention_heads": None}, "encoder_attention_heads=None"),
        ({"decoder_attention_heads": 0}, "decoder_attention_heads=0"),
    ],
)
def test_invalid_configuration_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        MaeAstConfig(**fields)


@pytest.mark.parametrize(
    ("mask_type", "fields", "message"),
    [
        ("chunk_mask", {"ast_kernel_stride_time": 8}, "stride_time=8 .*ast_kernel_size_time=16"),
        ("chunk_mask", {"ast_kernel_stride_chan": 8}, "stride_chan=8 .*ast_kernel_size_chan=16"),
        ("retain_spans", {"random_mask_prob": 1.45}, "ast_kernel_size_chan=128"),
        ("chunk_mask", {"random_mask_prob": 1.45}, "random_mask_prob 1.45"),
        ("chunk_patch", {}, "'chunk_patch' is unknown"),
    ],
)
def test_masks_that_do_not_fit_the_patches_are_refused(mask_type, fields, message):
    config = MaeAstConfig(**fields)
    with pytest.raises(ValueError, match=message):
        config.check_pretraining(mask_type)


def test_from_mapping_ignores_other_keys():
    values = dataclasses.asdict(MaeAstConfig(encoder_layers=3, dropout=0.2))
    values |= {"_name": "mae_ast", "conv_pos": 128, "enc_sine_pos": True}
    assert MaeAstConfig.from_mapping(values) == MaeAstConfig(encoder_layers=3, dropout=0.2)
