"""Convert between our weights and the published layouts of AST and SSAST.

Both layouts have timm's under ``v.``; a SSAST file adds the mask token, the two pretraining heads
and the spectrogram size, an AST file its classifier. Neither contains the number of attention
heads, the strides or the input statistics: these default to the published ones.

A SSAST fine-tuned with its authors' code has AST's weight names, but averages the patch tokens
where AST averages the CLS and distillation tokens; :func:`ambiguity` reports files that may be
either.

Published names begin with DataParallel's ``module.``. This prefix is added when writing; when
reading, it has already been removed by :func:`mae_ast.core.checkpoints.wrappers.unwrap`.
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mae_ast.core.checkpoints import key_table
from mae_ast.core.checkpoints.key_table import Row, State, Weights, constant, modules, prefixed
from mae_ast.core.checkpoints.layout import Checkpoint, Content, Layout
from mae_ast.core.checkpoints.timm import IMAGE_HEADS, rows, sizes_of, tensor_of, without
from mae_ast.core.checkpoints.wrappers import MODEL
from mae_ast.core.frontend.fbank import NUM_MEL_BINS
from mae_ast.core.frontend.patches import PatchShape
from mae_ast.core.models.config import FINETUNING_STRIDES, AstConfig, SsastConfig

WRAPPER = "module."
ENCODER = "v."
HEAD_DIM = 64  # in all published sizes
FRAMES = (1024, 512, 128)  # input lengths for AudioSet, ESC-50 and Speech Commands

_HEADS = {"cpredlayer": "final_proj_classification", "gpredlayer": "final_proj_reconstruction"}
_AST_HEAD = {"mlp_head.0": "head.layer_norm", "mlp_head.1": "head.linear"}
_UNUSED = tuple(ENCODER + head for head in IMAGE_HEADS)
_AST_KERNEL = (16, 16)  # patch size of every AST
# Biases of ImageNet classifiers: nonzero in AST, which starts from image weights, and zero in
# SSAST, which starts from random ones.
_IMAGE_BIASES = (f"{ENCODER}head.bias", f"{ENCODER}head_dist.bias")
_STRIDES = ("ast_kernel_stride_time", "ast_kernel_stride_chan")
_FIXED = ("encoder_attention_heads", "layer_norm_eps", "window_type")
_UNSTORED = ("input_mean", "input_std", "input_frames")

logger = logging.getLogger(__name__)


def ambiguity(state: State) -> str | None:
    """Describe which of AST and fine-tuned SSAST a file is assumed to be; ``None`` if certain."""
    pool, is_sure = _pooling(state[MODEL])
    if is_sure:
        return None
    assumed, other = ("AST", "a fine-tuned SSAST") if pool == "prefix" else ("a SSAST", "AST")
    other_pool = "tokens" if pool == "prefix" else "prefix"
    return (
        f"may be AST or a SSAST fine-tuned with its authors' code; scores are computed as for "
        f"{assumed}, pool={pool!r}. If it is {other}, run 'mae-ast convert' with --to safetensors "
        f'and set "pool": "{other_pool}" in its config.json'
    )


def write_ssast(config: SsastConfig, weights: State) -> Weights:
    """Return the state dict of a SSAST file as its authors' code and s3prl read it."""
    return key_table.write(prefixed(WRAPPER, _ssast_rows(config)), weights)


def write_ast(config: AstConfig, weights: State) -> Weights:
    """Return the state dict of an AST file as its authors' code reads it."""
    return key_table.write(prefixed(WRAPPER, _ast_rows(config)), weights)


def _read_ssast(state: Content, path: Path) -> Checkpoint:
    found = without(state[MODEL], _UNUSED)
    frames, mel = (int(tensor_of(found, f"p_input_{axis}dim", 0)) for axis in "tf")
    if mel != NUM_MEL_BINS:
        raise ValueError(f"p_input_fdim is {mel}; only {NUM_MEL_BINS} mel bins are supported")
    sizes = _sizes(found)
    config = SsastConfig(
        **sizes,
        ast_kernel_stride_chan=sizes["ast_kernel_size_chan"],
        ast_kernel_stride_time=sizes["ast_kernel_size_time"],
        position_frames=frames,
        input_frames=frames,
    )
    is_frame_model = config.patch_shape.per_column == 1
    weights = key_table.read(_ssast_rows(config), config, found)
    return Checkpoint(config, "random_mask" if is_frame_model else "chunk_mask", weights)


def _read_ast(state: Content, path: Path) -> Checkpoint:
    if unsure := ambiguity(state):
        logger.warning("%s: %s", path, unsure)
    config = _ast_config(state[MODEL])
    found = without(state[MODEL], _UNUSED)
    return Checkpoint(config, None, key_table.read(_ast_rows(config), config, found))


def _ssast_rows(config: SsastConfig) -> list[Row]:
    shape, width = config.patch_shape, config.encoder_embed_dim
    first = {f"{theirs}.0": f"{ours}.fc1" for theirs, ours in _HEADS.items()}
    second = {f"{theirs}.2": f"{ours}.fc2" for theirs, ours in _HEADS.items()}
    return [
        *prefixed(ENCODER, rows(config)),
        Row("mask_embed", "mask_emb", key_table.reshape((1, 1, width), (width,))),
        *modules(first),
        *modules(second, transform=key_table.swap_grid((shape.time, shape.mel))),  # of a patch
        constant("p_input_fdim", torch.tensor(NUM_MEL_BINS)),
        constant("p_input_tdim", torch.tensor(config.position_frames)),
    ]


def _ast_rows(config: AstConfig) -> list[Row]:
    return [*prefixed(ENCODER, rows(config)), *modules(_AST_HEAD)]


def _ast_config(found: State, strides: tuple[int, int] | None = None) -> AstConfig:
    """Derive the configuration from the shapes.

    Args:
        found: the file's state dict.
        strides: of the patches along time and mel, which the file does not contain; default: the
            published ones.
    """
    sizes = _sizes(found)
    kernel = sizes["ast_kernel_size_time"], sizes["ast_kernel_size_chan"]
    shape = PatchShape(*kernel, *(strides or _published_strides(*kernel)))
    table = tensor_of(found, f"{ENCODER}pos_embed", 3)
    along_time, rest = divmod(table.shape[1] - sizes["prefix_tokens"], shape.per_column)
    if rest or along_time < 1:
        raise ValueError(
            f"{ENCODER}pos_embed is {tuple(table.shape)}; with a stride of {shape.mel_stride}, the "
            f"number of positions without the {sizes['prefix_tokens']} prefix tokens must be a "
            f"multiple of {shape.per_column}"
        )
    min_frames = shape.num_frames_of(along_time)
    frames = next((n for n in FRAMES if shape.grid(n)[0] == along_time), min_frames)
    return AstConfig(
        **sizes,
        ast_kernel_stride_chan=shape.mel_stride,
        ast_kernel_stride_time=shape.time_stride,
        position_frames=frames,
        input_frames=frames,
        num_classes=len(tensor_of(found, "mlp_head.1.weight", 2)),
        pool=_pooling(found)[0],
    )


def _sizes(state: State) -> dict[str, Any]:
    """Derive fields of the configuration from the shapes of the weights."""
    sizes = sizes_of(state, ENCODER)
    return {
        **sizes,
        "prefix_tokens": 2 if f"{ENCODER}dist_token" in state else 1,
        "encoder_attention_heads": max(1, sizes["encoder_embed_dim"] // HEAD_DIM),
    }


def _published_strides(time: int, mel: int) -> tuple[int, int]:
    return FINETUNING_STRIDES.get(time, time), FINETUNING_STRIDES.get(mel, mel)


def _pooling(weights: State) -> tuple[str, bool]:
    """Return the pooling of a classifier with AST's names, and whether that is certain."""
    kernel = tensor_of(weights, f"{ENCODER}patch_embed.proj.weight", 4)
    if tuple(kernel.shape[2:]) != _AST_KERNEL:
        return "tokens", True
    biases = [weights[key] for key in _IMAGE_BIASES if isinstance(weights.get(key), Tensor)]
    if not biases:
        return "prefix", False
    return ("prefix", True) if any(bias.any() for bias in biases) else ("tokens", False)


def _assumed_of_ast(state: Content, config: AstConfig) -> AstConfig:
    shape = config.patch_shape
    found = _ast_config(state[MODEL], (shape.time_stride, shape.mel_stride))
    time_stride, mel_stride = _published_strides(shape.time, shape.mel)
    return dataclasses.replace(
        found, ast_kernel_stride_time=time_stride, ast_kernel_stride_chan=mel_stride
    )


SSAST = Layout(
    "ssast",
    keys=("mask_embed", f"{ENCODER}cls_token"),
    read=_read_ssast,
    write=lambda model: dict(write_ssast(model.config, model.weights)),
    fixed=(*_FIXED, *_STRIDES),
    unstored=_UNSTORED,
)
AST = Layout(
    "ast",
    keys=("mlp_head.1.weight", f"{ENCODER}cls_token"),
    read=_read_ast,
    write=lambda model: dict(write_ast(model.config, model.weights)),
    fixed=(*_FIXED, "head_layer_norm_eps"),
    unstored=(*_UNSTORED, "pool", *_STRIDES),
    assumed=_assumed_of_ast,
)
