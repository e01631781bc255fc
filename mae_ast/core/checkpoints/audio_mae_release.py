"""Convert between our weights and the published layout of Audio-MAE.

A file holds, under ``model``, a ViT in timm's layout and a decoder. The decoder's blocks are timm's
(global attention) or Swin V2's: post-norm, cosine attention with a learned temperature
``attn.tau``, and a relative position bias computed by ``attn.meta_mlp``. The published weights have
Swin V2 blocks, which are not implemented here: of such a file only the encoder is read.

Patches are in time-first order. Position tables are constants that can be computed. The number
of attention heads and the input statistics are not stored; they default to the published ones.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mae_ast.core.checkpoints import key_table
from mae_ast.core.checkpoints.key_table import Row, State, Weights, constant, modules, reshape
from mae_ast.core.checkpoints.layout import Checkpoint, Content, Layout
from mae_ast.core.checkpoints.timm import (
    num_layers_of,
    sizes_of,
    stack_rows,
    statistics_row,
    tensor_of,
    without,
)
from mae_ast.core.checkpoints.wrappers import MODEL
from mae_ast.core.frontend.fbank import NUM_MEL_BINS
from mae_ast.core.models.config import AudioMaeConfig
from mae_ast.core.nn.positions import grid_positions

HEAD_DIM = 64  # of the encoder, in all published sizes
DECODER_HEADS = 16
POSITIONS_ATOL = 1e-4  # tables may have been computed in float32

_DECODER = "decoder_"
_SWIN = re.compile(r"decoder_blocks\.\d+\.(attn\.(tau|meta_mlp)\b.*)")
_LINEAR = {"decoder_embed": "post_enc_proj", "decoder_pred": "final_proj_reconstruction"}

logger = logging.getLogger(__name__)


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
    return {MODEL: key_table.write(_rows(config), weights)}


def _rows(config: AudioMaeConfig) -> list[Row]:
    width, shape = config.encoder_embed_dim, config.patch_shape
    kernel = reshape((width, 1, shape.time, shape.mel), (width, shape.dim))
    encoder = [
        Row("cls_token", "prefix_tokens"),
        _positions_row("pos_embed", config.position_grid, width),
        Row("patch_embed.proj.weight", "post_extract_proj.weight", kernel),
        Row("patch_embed.proj.bias", "post_extract_proj.bias"),
        *stack_rows(config.encoder_layers),
        statistics_row(config),
    ]
    if not config.decoder_layers:
        return encoder
    width = config.decoder_embed_dim
    return [
        *encoder,
        Row("mask_token", "decoder_mask_emb", reshape((1, 1, width), (width,))),
        _positions_row("decoder_pos_embed", config.position_grid, width),
        *stack_rows(config.decoder_layers, "decoder", _DECODER),
        *modules(_LINEAR),
    ]


def _positions_row(name: str, grid: tuple[int, int], dim: int) -> Row:
    """Return the row of a table (1, 1 + N, D): zeros for CLS, then the positions of the grid."""
    positions = grid_positions(grid, dim)
    table = torch.cat((positions.new_zeros(1, dim), positions)).unsqueeze(0)

    def check(found: Tensor) -> None:
        if not torch.allclose(found.float(), table, rtol=0, atol=POSITIONS_ATOL):
            raise ValueError(f"{name} differs from 2-D sine-cosine positions")

    return constant(name, table, check)


def _read(state: Content, path: Path) -> Checkpoint:
    found: dict[str, Any] = dict(state[MODEL])
    skipped = []
    if any(_SWIN.fullmatch(key) for key in found):
        skipped = [key for key in found if key.startswith((_DECODER, "mask_token"))]
        found = without(found, skipped)
    config = _config(found)
    weights = key_table.read(_rows(config), config, found)
    if skipped:
        logger.warning("%s: %s", path, _describe_skipped(skipped))
    return Checkpoint(config, "random_mask", weights)


def _config(found: State) -> AudioMaeConfig:
    """Derive the configuration from the shapes, and from what all published files share."""
    sizes: dict[str, Any] = sizes_of(found)
    time, mel = tensor_of(found, "patch_embed.proj.weight", 4).shape[2:]  # AST's have (mel, time)
    sizes["ast_kernel_size_time"], sizes["ast_kernel_size_chan"] = time, mel
    sizes["ast_kernel_stride_time"], sizes["ast_kernel_stride_chan"] = time, mel
    width = sizes["encoder_embed_dim"]
    sizes["encoder_attention_heads"] = max(1, width // HEAD_DIM)
    decoder: dict[str, Any] = {"decoder_layers": 0}
    if "decoder_pred.weight" in found:
        decoder = {
            "decoder_layers": num_layers_of(found, "decoder_blocks."),
            "decoder_embed_dim": len(tensor_of(found, "decoder_embed.weight", 2)),
            "decoder_ffn_embed_dim": len(tensor_of(found, "decoder_blocks.0.mlp.fc1.weight", 2)),
            "decoder_attention_heads": DECODER_HEADS,
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


def _describe_skipped(skipped: list[str]) -> str:
    """Describe in one line which weights of a decoder were skipped, and why."""
    kinds = sorted({match[1] for key in skipped if (match := _SWIN.fullmatch(key))})
    return (
        f"reading the encoder only: the decoder has Swin V2 blocks ({', '.join(kinds)}), which are "
        f"not supported; skipped {len(skipped)} weights: decoder_blocks.*, "
        f"{', '.join(sorted(k for k in skipped if 'blocks' not in k))}"
    )


AUDIO_MAE = Layout(
    "audio_mae",
    keys=("patch_embed.proj.weight", "decoder_pred.weight"),
    read=_read,
    write=lambda model: dict(write_audio_mae(model.config, model.weights)),
    fixed=(
        *("encoder_attention_heads", "decoder_attention_heads", "layer_norm_eps", "window_type"),
        *("ast_kernel_stride_time", "ast_kernel_stride_chan"),
    ),
    unstored=("input_mean", "input_std", "input_frames"),
)
