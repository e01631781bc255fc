"""Convert between our weights and the layout of the released MAE-AST files, which s3prl reads.

The released layout is ours plus five entries: an unused layer norm (weight and bias), an encoder
mask token that gets no gradient, and two position tables that can be computed. Its ``cfg`` has all
fields of the reference implementation. The trainer's own checkpoints, of any system, have this
layout without these entries and fields.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mae_ast.core.checkpoints.layout import Checkpoint, Content, Layout
from mae_ast.core.checkpoints.wrappers import MODEL
from mae_ast.core.frontend.fbank import NUM_MEL_BINS
from mae_ast.core.models.config import MaeAstConfig
from mae_ast.core.models.registry import parse_config
from mae_ast.core.nn.positions import sinusoidal_positions

MAX_TOKENS = 48_000  # rows of the position tables
CHECKED_TOKENS = 1_024  # rows that are compared with ours
TABLES = {
    "enc_sine_pos_embed.pe": "encoder_embed_dim",
    "dec_sine_pos_embed.pe": "decoder_embed_dim",
}
EXTRAS = ("encoder_mask_emb", "layer_norm.weight", "layer_norm.bias", *TABLES)

# Fields of the released configuration that the trainer's lacks, with the single supported value.
_SUPPORTED = {
    "activation_fn": "gelu",
    "enc_sine_pos": True,
    "dec_sine_pos": True,
    "enc_conv_pos": False,
    "dec_conv_pos": False,
}
# Fields that do not affect what the network computes.
_IRRELEVANT = {
    "feature_grad_mult": 1.0,
    "checkpoint_activations": False,
    "mask_selection": "static",
    "mask_other": 0,
    "no_mask_overlap": False,
    "mask_min_space": 0,
    "max_token_length": MAX_TOKENS,
}
_OURS_ONLY = (
    *("random_mask_prob", "decoder_ffn_embed_dim", "decoder_attention_heads", "precision"),
    *("input_stats", "input_mean", "input_std", "input_frames"),
)
_TASK = {"sample_rate": 16_000, "feature_type": "fbank", "feature_dim": NUM_MEL_BINS}
FEATURE_RATE = 100  # frames per second


def to_released(
    config: MaeAstConfig, mask_type: str | None, weights: Mapping[str, Tensor]
) -> dict[str, Any]:
    """Return a file for s3prl's ``mae_ast_local``: ``{"cfg": {"model", "task"}, "model"}``.

    Raises:
        ValueError: the decoder has sizes that the released layout has no field for.
    """
    for key in ("ffn_embed_dim", "attention_heads"):
        theirs = getattr(config, f"encoder_{key}")
        if (getattr(config, f"decoder_{key}") or theirs) != theirs:
            raise ValueError(
                f"decoder_{key}={getattr(config, f'decoder_{key}')} differs from encoder_{key}="
                f"{theirs}; the released layout stores one value for both"
            )
    fields = {k: v for k, v in dataclasses.asdict(config).items() if k not in _OURS_ONLY}
    fields |= {**_SUPPORTED, **_IRRELEVANT}
    fields["use_post_enc_proj"] = config.encoder_embed_dim != config.decoder_embed_dim
    extras = {
        "encoder_mask_emb": torch.zeros(config.encoder_embed_dim),
        "layer_norm.weight": torch.ones(NUM_MEL_BINS),
        "layer_norm.bias": torch.zeros(NUM_MEL_BINS),
        **{
            key: sinusoidal_positions(MAX_TOKENS, getattr(config, width)).unsqueeze(0)
            for key, width in TABLES.items()
        },
    }
    task = {**_TASK, "feature_rate": FEATURE_RATE, "mask_type": mask_type}
    return {"cfg": {"model": fields, "task": task}, MODEL: {**weights, **extras}}


def _read(state: Content, path: Path) -> Checkpoint:
    model_cfg, task_cfg = state["cfg"]["model"], state["cfg"]["task"]
    mask_type, weights = str(task_cfg["mask_type"]), dict(state[MODEL])
    for cfg, known in ((model_cfg, _SUPPORTED), (task_cfg, _TASK)):
        for key, value in known.items():
            if cfg.get(key, value) != value:
                raise ValueError(
                    f"was trained with {key}={cfg[key]!r}; only {value!r} is supported"
                )
    for key in TABLES:
        if isinstance(table := weights.get(key), Tensor) and not _is_sinusoidal(table):
            raise ValueError(f"{key} differs from sinusoidal positions")
    own = {key: value for key, value in weights.items() if key not in EXTRAS}
    return Checkpoint(parse_config(model_cfg), mask_type, own)


def _is_sinusoidal(table: Tensor) -> bool:
    rows = table.flatten(0, -2)[:CHECKED_TOKENS].float()
    # float16 is accurate to 2^-11; the implementations' exponentials differ in the last bits.
    atol = 1e-3 if table.dtype != torch.float32 else 1e-4
    return torch.allclose(rows, sinusoidal_positions(*rows.shape), rtol=0, atol=atol)


MAE_AST = Layout(
    "mae_ast",
    keys=(),  # tried last; reading names what is missing
    read=_read,
    write=lambda model: to_released(model.config, model.mask_type, model.weights),
)
