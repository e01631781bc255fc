"""Demo metrics, on noise whose metrics are known."""

import numpy as np
import pytest
import soundfile
import torch

from mae_ast.core.io.manifest import Manifest, write_manifest
from mae_ast.core.models.config import MaeAstConfig
from mae_ast.hub.load import PretrainedMaeAst
from scripts.demo.evaluate import evaluate


@pytest.fixture
def manifest(tmp_path):
    rng = np.random.default_rng(0)
    rows = []
    for number in range(6):
        noise = rng.standard_normal(16_000) * 10 ** (-number / 4) * 0.2
        soundfile.write(tmp_path / f"{number}.wav", noise, 16_000, subtype="PCM_16")
        rows.append((f"{number}.wav", 16_000, 16_000))
    write_manifest(tmp_path / "train.tsv", ".", rows)
    return Manifest.load(tmp_path / "train.tsv")


def test_baseline_predicts_level_and_spectral_shape(manifest):
    config = MaeAstConfig(
        encoder_layers=1,
        encoder_embed_dim=32,
        encoder_ffn_embed_dim=32,
        encoder_attention_heads=2,
        decoder_layers=1,
        decoder_embed_dim=32,
        input_stats="fixed",
        input_mean=-6.0,
        input_std=3.0,
    )
    torch.manual_seed(0)
    model = PretrainedMaeAst(config, "random_mask").eval()
    for head in (model.final_proj_reconstruction, model.final_proj_classification):
        torch.nn.init.zeros_(head.weight)  # the model always predicts 0
    scores = evaluate(model, manifest, manifest)
    assert scores.num_candidates == 36
    assert scores.accuracy == pytest.approx(1 / 36, abs=0.02)  # equal logits: the first wins
    # White noise: given level and spectral shape, only the ripple of the log spectrum remains.
    assert scores.baseline_mse < 0.03 < scores.mse
