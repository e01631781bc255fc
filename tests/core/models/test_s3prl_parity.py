"""MAE-AST equals the independent implementation in s3prl."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torchaudio.compliance.kaldi import fbank

from mae_ast.core.frontend.masking import MaskIds, chunk_mask, pad_mask_ids, random_mask
from mae_ast.core.models.config import MaeAstConfig
from mae_ast.core.models.encoder import encoder_only
from mae_ast.core.models.mae_ast import MaeAst
from tests.sounds import speech_like

pytestmark = pytest.mark.slow

hubconf = pytest.importorskip("s3prl.upstream.mae_ast.hubconf", reason="needs s3prl")
theirs = pytest.importorskip("s3prl.upstream.mae_ast.mae_ast", reason="needs s3prl")

MAX_TOKENS = 1_024  # rows of s3prl's position table
PATCHES, FRAMES = (16, 16), (2, 128)  # frames, mel bins
SECONDS = (1.0, 2.3)


def frame_config() -> dict[str, int]:
    return {
        f"ast_kernel_{what}_{axis}": size
        for what in ("size", "stride")
        for axis, size in (("time", 2), ("chan", 128))
    }


def model_with_random_weights(config: MaeAstConfig) -> MaeAst:
    """Build a model with non-trivial norms, log-mel statistics and non-uniform attention."""
    model = MaeAst(config).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "norm" in name:
                value += 0.2 * torch.randn_like(value)
            elif name.endswith("bias"):
                value += 0.05 * torch.randn_like(value)
            elif "q_proj" in name or "k_proj" in name:
                value *= 3
        model.batch_norm.running_mean.uniform_(-9, -5)
        model.batch_norm.running_var.uniform_(9, 25)
    return model


def table(dim: int) -> Tensor:
    position = torch.arange(MAX_TOKENS).unsqueeze(1)
    frequency = torch.exp(torch.arange(0, dim, 2) * (-math.log(10_000.0) / dim))
    angles = position * frequency
    return torch.stack((angles.sin(), angles.cos()), dim=2).flatten(1).unsqueeze(0)


def s3prl_checkpoint(model: MaeAst, config: MaeAstConfig) -> dict[str, Any]:
    """Return a checkpoint for s3prl: our weights, its additional keys and its configuration."""
    extra = {
        "layer_norm.weight": torch.ones(128),
        "layer_norm.bias": torch.zeros(128),
        "encoder_mask_emb": torch.rand(config.encoder_embed_dim),
        "enc_sine_pos_embed.pe": table(config.encoder_embed_dim),
        "dec_sine_pos_embed.pe": table(config.decoder_embed_dim),
    }
    fields = dataclasses.asdict(theirs.MAE_AST_Config())
    ours = dataclasses.asdict(config)
    fields |= {key: value for key, value in ours.items() if key in fields}
    fields |= {"enc_sine_pos": True, "dec_sine_pos": True, "max_token_length": MAX_TOKENS}
    fields["use_post_enc_proj"] = config.encoder_embed_dim != config.decoder_embed_dim
    task = {
        "sample_rate": 16_000,
        "feature_type": "fbank",
        "feature_rate": 100,
        "feature_dim": 128,
        "mask_type": "random_mask",
    }
    return {"cfg": {"model": fields, "task": task}, "model": {**model.state_dict(), **extra}}


def expert_of(model: MaeAst, config: MaeAstConfig, folder: Path) -> nn.Module:
    """Build s3prl's upstream with the weights of ``model``."""
    path = folder / "for_s3prl.pt"
    torch.save(s3prl_checkpoint(model, config), path)
    expert = hubconf.mae_ast_local(str(path)).eval()
    path.unlink()
    return expert


def assert_same_features(model: MaeAst, expert: nn.Module, fold: int) -> None:
    """Compare single clips with s3prl; our model also computes both clips as a padded batch."""
    waves = [speech_like(round(16_000 * s), seed) for seed, s in enumerate(SECONDS)]
    lengths = torch.tensor([len(wave) for wave in waves])
    with torch.no_grad():
        together = model.hidden_states(nn.utils.rnn.pad_sequence(waves, batch_first=True), lengths)
        for row, wave in enumerate(waves):
            expected = expert([wave])["hidden_states"]
            alone = model.hidden_states(wave.unsqueeze(0))
            assert len(together) == len(alone) == len(expected)
            for ours, padded, reference in zip(alone, together, expected, strict=True):
                vectors = reference.shape[1]
                assert ours.shape[1] == vectors * fold
                folded = ours.reshape(1, vectors, -1)
                assert_close(folded, reference, rtol=0, atol=1e-4)
                padded = padded[row : row + 1, : vectors * fold].reshape(1, vectors, -1)
                assert_close(padded, reference, rtol=0, atol=1e-4)
                assert reference.std() > 0.3


@pytest.mark.parametrize("kind", ["patches", "frames"])
def test_hidden_states_of_full_size_models(tmp_path, kind):
    fields = frame_config() if kind == "frames" else {}
    config = MaeAstConfig(decoder_layers=1, **fields)
    model = model_with_random_weights(config)
    assert_same_features(model, expert_of(model, config, tmp_path), fold=8 if not fields else 1)


@pytest.mark.parametrize("kernel", [PATCHES, FRAMES, (8, 32), (4, 64)], ids=str)
def test_hidden_states_of_pre_norm_layers(tmp_path, small_config, kernel):
    config = small_config(kernel, layer_norm_first=True, encoder_layers=3)
    model = model_with_random_weights(config)
    assert_same_features(model, expert_of(model, config, tmp_path), fold=128 // kernel[1])


@pytest.mark.parametrize("kernel", [PATCHES, FRAMES], ids=str)
def test_hidden_states_in_training_mode(tmp_path, small_config, kernel):
    """``dropout_input`` is part of pretraining; the other dropouts are 0 here."""
    config = small_config(kernel, encoder_layers=3, dropout_input=0.5)
    model = model_with_random_weights(config)
    expert = expert_of(model, config, tmp_path).train()
    expert.model.batch_norm.eval()
    model = encoder_only(model).train()
    first = model.hidden_states(speech_like(16_000).unsqueeze(0))
    for ours, again in zip(first, model.hidden_states(speech_like(16_000)[None]), strict=True):
        assert torch.equal(ours, again)
    assert_same_features(model, expert, fold=128 // kernel[1])


def predict_with_s3prl(model: nn.Module, source: Tensor, mask: MaskIds) -> dict[str, Tensor]:
    """Run s3prl's pretraining forward with a given mask instead of a random one."""
    visible, masked = mask.visible_ids.tolist(), mask.masked_ids.tolist()
    model.forward_mask = lambda features, padding_mask: (visible, masked, len(masked[0]))
    padding_mask = torch.zeros(source.shape[:2], dtype=torch.bool)
    return model(source, padding_mask=padding_mask, mask=True)


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize(
    ("kernel", "fields"),
    [
        (PATCHES, {}),
        (PATCHES, {"layer_norm_first": True}),
        (FRAMES, {}),
    ],
    ids=str,
)
def test_pretraining_forward(small_config, kernel, fields, training):
    config = small_config(kernel, **fields, encoder_layers=3, decoder_layers=2)
    model = model_with_random_weights(config).train(training)
    state = s3prl_checkpoint(model, config)
    reference = theirs.MAE_AST(
        SimpleNamespace(**state["cfg"]["model"]), SimpleNamespace(**state["cfg"]["task"])
    ).train(training)
    reference.load_state_dict(state["model"])

    waves = [speech_like(32_000, seed).unsqueeze(0) for seed in range(2)]
    source = torch.stack([fbank(wave, use_energy=False, num_mel_bins=128) for wave in waves])
    grid = config.patch_shape.grid(source.shape[1])
    strategy = chunk_mask if kernel == PATCHES else random_mask
    mask = pad_mask_ids([strategy(1, grid, 0.75) for _ in range(2)])

    ours = model(torch.cat(waves), None, mask)
    expected = predict_with_s3prl(reference, source, mask)
    assert_close(ours.target, expected["target_m_list"], rtol=0, atol=1e-4)
    assert_close(ours.reconstruction, expected["logit_m_list_recon"], rtol=0, atol=1e-4)
    assert_close(ours.classification, expected["logit_m_list_class"], rtol=0, atol=1e-4)
    for name in ("running_mean", "running_var"):
        assert_close(
            getattr(model.batch_norm, name), getattr(reference.batch_norm, name), rtol=1e-5, atol=0
        )
