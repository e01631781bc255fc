"""Fine-tuning trains the plain encoder, with pretraining-only behaviour disabled."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mae_ast.core.models.classifier import Classifier, HeadConfig
from mae_ast.core.models.config import EncoderConfig
from mae_ast.core.models.encoder import Encoder
from mae_ast.core.models.registry import SYSTEMS
from mae_ast.finetune.initialize import finetuning_config, for_training
from mae_ast.models.classifier import MaeAstClassifierConfig
from tests.sounds import speech_like

SIZES = {
    "encoder_layers": 2,
    "encoder_embed_dim": 48,
    "encoder_ffn_embed_dim": 40,
    "encoder_attention_heads": 4,
    "decoder_layers": 1,
    "decoder_embed_dim": 32,
    "decoder_attention_heads": 4,
    "position_frames": 128,
}
# Pretraining settings with a visible effect.
DROPOUTS = dict.fromkeys(("dropout", "attention_dropout", "activation_dropout"), 0.5)
PRETRAINING = DROPOUTS | {"encoder_layerdrop": 0.5, "dropout_input": 0.5, "input_stats": "batch"}
VARIANTS: dict[str, tuple[dict[str, Any], bool]] = {
    "as pretrained": ({}, False),
    "pre-norm": ({"layer_norm_first": True}, False),
    "overlapping": ({}, True),
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("system", SYSTEMS)
def test_training_is_deterministic_without_dropout(system: str, variant: str) -> None:
    fields, overlap = VARIANTS[variant]
    pretrained = SYSTEMS[system].config.from_mapping(SIZES | PRETRAINING | fields)
    config = finetuning_config(pretrained, overlap)
    source = torch.stack([speech_like(16_000), speech_like(16_000, 1)])

    def classifier(**settings: float) -> Classifier:
        cfg = MaeAstClassifierConfig(input_mean=-6.0, input_std=3.0, **settings)
        final: EncoderConfig = for_training(config, cfg)
        assert final.input_stats == "fixed"
        torch.manual_seed(0)
        return Classifier(Encoder(final), HeadConfig(5, pool="tokens")).train()

    model = classifier()
    statistics = model.encoder.batch_norm.running_mean.clone()
    assert statistics == -6
    one, other = model(source), model(source)
    assert torch.equal(one, other)
    torch.testing.assert_close(one, model.eval()(source), rtol=0, atol=1e-6)
    assert torch.equal(model.encoder.batch_norm.running_mean, statistics)
    assert not torch.equal(classifier(dropout=0.1)(source), one)
