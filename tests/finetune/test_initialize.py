"""Fine-tuning trains the plain encoder, with pretraining-only behaviour disabled."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mae_ast.core.models.ast import Ast
from mae_ast.core.models.audio_mae import AudioMae
from mae_ast.core.models.classifier import Classifier, HeadConfig
from mae_ast.core.models.config import AstConfig, AudioMaeConfig, SsastConfig
from mae_ast.core.models.encoder import encoder_only, set_dropout
from mae_ast.core.models.mae_ast import MaeAst
from mae_ast.core.models.ssast import Ssast
from mae_ast.finetune.initialize import finetuning_view
from tests.core.vits import SMALL
from tests.sounds import speech_like

# Pretraining settings with a visible effect.
DROPOUTS = dict.fromkeys(("dropout", "attention_dropout", "activation_dropout"), 0.5)
PRETRAINING = DROPOUTS | {"encoder_layerdrop": 0.5, "input_mean": -6.0, "input_std": 3.0}
OF_VIT = SMALL | {"encoder_embed_dim": 48, "encoder_attention_heads": 4} | PRETRAINING
OF_AUDIO_MAE = {name: value for name, value in OF_VIT.items() if name != "position_frames"}
SYSTEMS = {
    "ssast": lambda: Ssast(SsastConfig(**OF_VIT)),
    "ast": lambda: Ast(AstConfig(**OF_VIT)),
    "audio_mae": lambda: AudioMae(
        AudioMaeConfig(**OF_AUDIO_MAE, decoder_layers=1, decoder_attention="global")
    ),
    "ssast view": lambda: finetuning_view(encoder_only(Ssast(SsastConfig(**OF_VIT))), True, 200),
}


@pytest.mark.parametrize("system", ["mae_ast", "mae_ast pre-norm", *SYSTEMS])
def test_training_is_deterministic_without_dropout(small_config: Any, system: str) -> None:
    if system in SYSTEMS:
        encoder: Any = SYSTEMS[system]()
    else:
        norm_first = "pre-norm" in system
        config = small_config(dropout_input=0.5, layer_norm_first=norm_first, **PRETRAINING)
        encoder = MaeAst(config)
    encoder = encoder_only(encoder)
    set_dropout(encoder, 0.0, 0.0, 0.0, 0.0)
    width = encoder.config.encoder_embed_dim
    model = Classifier(encoder, width, HeadConfig(5, pool="tokens")).train()
    source = torch.stack([speech_like(16_000), speech_like(16_000, 1)])
    statistics = encoder.batch_norm.running_mean.clone()
    one, other = model(source), model(source)
    assert torch.equal(one, other)
    torch.testing.assert_close(one, model.eval()(source), rtol=0, atol=1e-6)
    assert torch.equal(encoder.batch_norm.running_mean, statistics)
    set_dropout(encoder, 0.1, 0.0, 0.0, 0.0)
    assert not torch.equal(model.train()(source), one)
