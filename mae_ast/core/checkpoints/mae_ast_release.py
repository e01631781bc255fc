"""The layout of the released MAE-AST files, which stock s3prl reads, to and from ours.

Theirs is ours plus five entries: a layer norm that nothing uses, an encoder mask token that gets
no gradient, and two tables of positions that can be computed. Their ``cfg`` has the reference
implementation's fields, all of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mae_ast.core.frontend.fbank import NUM_MEL_BINS
from mae_ast.core.models.config import MaeAstConfig
from mae_ast.core.nn.positions import sinusoidal_positions

MAX_TOKENS = 48_000  # rows of their tables of positions
TABLES = ("enc_sine_pos_embed.pe", "dec_sine_pos_embed.pe")
EXTRAS = ("encoder_mask_emb", "layer_norm.weight", "layer_norm.bias", *TABLES)

# Fields of theirs that ours lacks, with the one value under which both are the same network.
_SAME_IF = {
    "activation_fn": "gelu",
    "enc_sine_pos": True,
    "dec_sine_pos": True,
    "enc_conv_pos": False,
    "dec_conv_pos": False,
}
# Fields that do not change what the network computes.
_OF_NO_MATTER = {
    "feature_grad_mult": 1.0,
    "checkpoint_activations": False,
    "mask_selection": "static",
    "mask_other": 0,
    "no_mask_overlap": False,
    "mask_min_space": 0,
    "max_token_length": MAX_TOKENS,
}
_NOT_THEIRS = (
    *("random_mask_prob", "decoder_ffn_embed_dim", "decoder_attention_heads", "precision"),
    *("input_stats", "input_mean", "input_std"),
)
_TASK = {"sample_rate": 16_000, "feature_type": "fbank", "feature_dim": NUM_MEL_BINS}
FEATURE_RATE = 100  # frames a second


def check(model_cfg: Mapping[str, Any], task_cfg: Mapping[str, Any]) -> None:
    """Refuse a file whose ``cfg`` describes what our model is not; ours have none of these keys.

    Raises:
        ValueError: names the field.
    """
    for cfg, known in ((model_cfg, _SAME_IF), (task_cfg, _TASK)):
        for key, value in known.items():
            if cfg.get(key, value) != value:
                raise ValueError(f"was trained with {key}={cfg[key]!r}; only {value!r} is known")


def without_extras(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Weights without the five entries that ours do not hold.

    Raises:
        ValueError: a table holds other positions than ours.
    """
    for key in TABLES:
        table = weights.get(key)
        if isinstance(table, Tensor) and not _is_ours(table):
            raise ValueError(f"{key} holds other positions than sine and cosine")
    return {key: value for key, value in weights.items() if key not in EXTRAS}


def to_released(
    config: MaeAstConfig, mask_type: str, weights: Mapping[str, Tensor]
) -> dict[str, Any]:
    """What stock s3prl's ``mae_ast_local`` loads: ``{"cfg": {"model", "task"}, "model"}``.

    Raises:
        ValueError: the decoder has sizes that their layout has no field for.
    """
    for key in ("ffn_embed_dim", "attention_heads"):
        theirs = getattr(config, f"encoder_{key}")
        if (getattr(config, f"decoder_{key}") or theirs) != theirs:
            raise ValueError(
                f"decoder_{key}={getattr(config, f'decoder_{key}')} differs from encoder_{key}="
                f"{theirs}; the released layout has one for both"
            )
    fields = {k: v for k, v in dataclasses.asdict(config).items() if k not in _NOT_THEIRS}
    fields |= {**_SAME_IF, **_OF_NO_MATTER}
    fields["use_post_enc_proj"] = config.encoder_embed_dim != config.decoder_embed_dim
    widths = (config.encoder_embed_dim, config.decoder_embed_dim)
    extras = {
        "encoder_mask_emb": torch.zeros(widths[0]),
        "layer_norm.weight": torch.ones(NUM_MEL_BINS),
        "layer_norm.bias": torch.zeros(NUM_MEL_BINS),
        **{
            key: sinusoidal_positions(MAX_TOKENS, width).unsqueeze(0)
            for key, width in zip(TABLES, widths, strict=True)
        },
    }
    task = {**_TASK, "feature_rate": FEATURE_RATE, "mask_type": mask_type}
    return {"cfg": {"model": fields, "task": task}, "model": {**weights, **extras}}


def _is_ours(table: Tensor) -> bool:
    rows = table.flatten(0, -2).float()
    # Half precision holds a sine to 2^-11, and their exponentials differ in the last bits.
    atol = 1e-3 if table.dtype != torch.float32 else 1e-4
    some = min(len(rows), 1_024)
    return torch.allclose(rows[:some], sinusoidal_positions(some, rows.shape[1]), rtol=0, atol=atol)
