"""Convert between our weights and the published layout of Audio-MAE.

A file holds, under ``model``, a ViT in timm's layout and a decoder. The decoder's blocks are timm's
(global attention) or Swin V2's: post-norm, cosine attention with a learned temperature
``attn.tau``, and a relative position bias computed by ``attn.meta_mlp``. The published weights have
Swin V2 blocks, which are not implemented here: of such a file only the encoder is read, and the
skipped weights are returned.

Patches are in time-first order. Position tables are constants that can be computed. The number
of attention heads and the input statistics are not stored; they default to the published ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mae_ast.core.checkpoints.timm import (
    State,
    Weights,
    check,
    meta_weights,
    sizes_of,
    stack_from_timm,
    stack_to_timm,
    statistics,
    tensor_of,
)
from mae_ast.core.checkpoints.wrappers import MODEL
from mae_ast.core.frontend.fbank import NUM_MEL_BINS
from mae_ast.core.models.audio_mae import AudioMae
from mae_ast.core.models.config import AudioMaeConfig
from mae_ast.core.nn.positions import grid_positions

HEAD_DIM = 64  # of the encoder, in all published sizes
DECODER_HEADS = 16
POSITIONS_ATOL = 1e-4  # tables may have been computed in float32

_DECODER = "decoder_"
_SWIN = re.compile(r"decoder_blocks\.\d+\.(attn\.(tau|meta_mlp)\b.*)")
_LINEAR = {"decoder_embed": "post_enc_proj", "decoder_pred": "final_proj_reconstruction"}
_KINDS = ("weight", "bias")
_TABLES = {"pos_embed": "encoder_embed_dim", "decoder_pos_embed": "decoder_embed_dim"}


def is_audio_mae(state: State) -> bool:
    """Return whether the unwrapped content of a file looks like a published Audio-MAE."""
    weights = state.get(MODEL)
    return (
        isinstance(weights, Mapping)
        and "patch_embed.proj.weight" in weights
        and "decoder_pred.weight" in weights
    )


def read_audio_mae(
    state: State, attention_heads: int | None = None, decoder_attention_heads: int = DECODER_HEADS
) -> tuple[AudioMaeConfig, Weights, list[str]]:
    """Return configuration and weights from a published file.

    Args:
        state: the file's content, unwrapped (:func:`mae_ast.core.checkpoints.wrappers.unwrap`).
        attention_heads: of the encoder; default: D / 64, as in all published sizes.
        decoder_attention_heads: of the decoder; the file does not store it.

    Returns:
        The configuration, the weights, and the names of skipped weights: those of the decoder if
        its blocks are Swin V2's, else none.

    Raises:
        ValueError: a key is missing, unknown, of another shape, or a table does not hold the
            positions expected; it is named.
    """
    found: dict[str, Any] = dict(state[MODEL])
    skipped = []
    if any(_SWIN.fullmatch(str(key)) for key in found):
        skipped = [key for key in found if key.startswith(_DECODER) or key == "mask_token"]
        found = {key: value for key, value in found.items() if key not in skipped}
    config = _config(found, attention_heads, decoder_attention_heads)
    check(write_audio_mae(config, meta_weights(AudioMae, config))[MODEL], found)
    _check_positions(config, found)
    weights: Weights = {
        **statistics(config),
        "prefix_tokens": found["cls_token"],
        "post_extract_proj.weight": found["patch_embed.proj.weight"].flatten(1),
        "post_extract_proj.bias": found["patch_embed.proj.bias"],
        **stack_from_timm(found, config.encoder_layers),
    }
    if config.decoder_layers:
        weights["decoder_mask_emb"] = found["mask_token"].flatten()
        weights |= stack_from_timm(found, config.decoder_layers, "decoder", _DECODER)
        for theirs, ours in _LINEAR.items():
            for kind in _KINDS:
                weights[f"{ours}.{kind}"] = found[f"{theirs}.{kind}"]
    return config, weights, skipped


def write_audio_mae(config: AudioMaeConfig, weights: State) -> dict[str, Weights]:
    """Return the content of a file as the authors' code reads it.

    Raises:
        ValueError: the decoder has window attention; the layout supports global attention only.
    """
    if any(shift is not None for shift in config.shifts):
        raise ValueError(
            f"decoder_attention={config.decoder_attention}: the published layout supports "
            "decoder_attention=global only"
        )
    shape = config.patch_shape
    grid, device = config.position_grid, weights["post_extract_proj.weight"].device
    kernel = weights["post_extract_proj.weight"].unflatten(1, (1, shape.time, shape.mel))
    state: Weights = {
        "cls_token": weights["prefix_tokens"],
        "pos_embed": _table(grid, config.encoder_embed_dim).to(device),
        "patch_embed.proj.weight": kernel,
        "patch_embed.proj.bias": weights["post_extract_proj.bias"],
        **stack_to_timm(weights, config.encoder_layers),
    }
    if config.decoder_layers:
        state["mask_token"] = weights["decoder_mask_emb"].reshape(1, 1, -1)
        state["decoder_pos_embed"] = _table(grid, config.decoder_embed_dim).to(device)
        state |= stack_to_timm(weights, config.decoder_layers, "decoder", _DECODER)
        for theirs, ours in _LINEAR.items():
            for kind in _KINDS:
                state[f"{theirs}.{kind}"] = weights[f"{ours}.{kind}"]
    return {MODEL: state}


def describe_skipped(skipped: list[str]) -> str:
    """Describe in one line which weights of a decoder were skipped, and why."""
    kinds = sorted({match[1] for key in skipped if (match := _SWIN.fullmatch(key))})
    return (
        f"reading the encoder only: the decoder has Swin V2 blocks ({', '.join(kinds)}), which are "
        f"not supported; skipped {len(skipped)} weights: decoder_blocks.*, "
        f"{', '.join(sorted(k for k in skipped if 'blocks' not in k))}"
    )


def _config(
    found: State, attention_heads: int | None, decoder_attention_heads: int
) -> AudioMaeConfig:
    """Derive the configuration from the shapes, and from what all published files share."""
    kernel = tensor_of(found, "patch_embed.proj.weight", 4)
    sizes: dict[str, Any] = sizes_of(found)
    time, mel = kernel.shape[2], kernel.shape[3]  # AST's files have (mel, time)
    sizes["ast_kernel_size_time"], sizes["ast_kernel_size_chan"] = time, mel
    sizes["ast_kernel_stride_time"], sizes["ast_kernel_stride_chan"] = time, mel
    width = sizes["encoder_embed_dim"]
    sizes["encoder_attention_heads"] = attention_heads or max(1, width // HEAD_DIM)
    decoder: dict[str, Any] = {"decoder_layers": 0}
    if "decoder_pred.weight" in found:
        blocks = {key.split(".")[1] for key in found if key.startswith("decoder_blocks.")}
        decoder = {
            "decoder_layers": len(blocks),
            "decoder_embed_dim": len(tensor_of(found, "decoder_embed.weight", 2)),
            "decoder_ffn_embed_dim": len(tensor_of(found, "decoder_blocks.0.mlp.fc1.weight", 2)),
            "decoder_attention_heads": decoder_attention_heads,
        }
    num_positions = tensor_of(found, "pos_embed", 3).shape[1] - 1
    per_column = max(1, NUM_MEL_BINS // mel)
    frames = num_positions // per_column * time
    if frames != AudioMaeConfig.position_frames:
        raise ValueError(
            f"pos_embed has {num_positions} positions besides CLS; "
            f"{AudioMaeConfig.position_frames} frames in patches of {time} x {mel} have "
            f"{AudioMaeConfig.position_frames // time * per_column}"
        )
    return AudioMaeConfig(**sizes, **decoder, decoder_attention="global", input_frames=frames)


def _check_positions(config: AudioMaeConfig, found: State) -> None:
    for key, width in _TABLES.items():
        if key in found:
            expected = _table(config.position_grid, getattr(config, width))
            if not torch.allclose(found[key].float(), expected, rtol=0, atol=POSITIONS_ATOL):
                raise ValueError(f"{key} differs from 2-D sine-cosine positions")


def _table(grid: tuple[int, int], dim: int) -> Tensor:
    """Return the position table (1, 1 + N, D): zeros for CLS, then the positions of the grid."""
    positions = grid_positions(grid, dim)
    return torch.cat((positions.new_zeros(1, dim), positions)).unsqueeze(0)
