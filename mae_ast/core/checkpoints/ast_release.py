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

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mae_ast.core.checkpoints.timm import (
    IMAGE_HEADS,
    State,
    Weights,
    check,
    encoder_from_timm,
    meta_weights,
    sizes_of,
    tensor_of,
    to_timm,
    without,
)
from mae_ast.core.checkpoints.wrappers import MODEL
from mae_ast.core.frontend.fbank import NUM_MEL_BINS
from mae_ast.core.frontend.patches import PatchShape
from mae_ast.core.models.ast import Ast
from mae_ast.core.models.config import FINETUNING_STRIDES, AstConfig, SsastConfig
from mae_ast.core.models.ssast import Ssast

WRAPPER = "module."
ENCODER = "v."
STRIDE = FINETUNING_STRIDES[16]  # stride of AST's patches in most published files
HEAD_DIM = 64  # in all published sizes
FRAMES = (1024, 512, 128)  # input lengths for AudioSet, ESC-50 and Speech Commands

_HEADS = {"cpredlayer": "final_proj_classification", "gpredlayer": "final_proj_reconstruction"}
_AST_HEAD = {"mlp_head.0": "head.layer_norm", "mlp_head.1": "head.linear"}
_KINDS = ("weight", "bias")
_UNUSED = tuple(ENCODER + head for head in IMAGE_HEADS)
_AST_KERNEL = (16, 16)  # patch size of every AST
# Biases of ImageNet classifiers: nonzero in AST, which starts from image weights, and zero in
# SSAST, which starts from random ones.
_IMAGE_BIASES = (f"{ENCODER}head.bias", f"{ENCODER}head_dist.bias")


def is_ssast(state: State) -> bool:
    """Return whether the unwrapped content of a file looks like a published SSAST."""
    return _has(state, "mask_embed")


def is_ast(state: State) -> bool:
    """Return whether the unwrapped content of a file looks like a published AST."""
    return _has(state, "mlp_head.1.weight")


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


def read_ssast(state: State, attention_heads: int | None = None) -> tuple[SsastConfig, Weights]:
    """Return configuration and weights from a published SSAST file.

    Args:
        state: the file's content, unwrapped.
        attention_heads: H; default: D / 64, as in all published sizes.

    Raises:
        ValueError: a key is missing, unknown, or of another shape; it is named.
    """
    found = without(state[MODEL], _UNUSED)
    frames, mel = (int(tensor_of(found, f"p_input_{axis}dim", 0)) for axis in "tf")
    if mel != NUM_MEL_BINS:
        raise ValueError(f"p_input_fdim is {mel}; only {NUM_MEL_BINS} mel bins are supported")
    sizes = _sizes(found, attention_heads)
    config = SsastConfig(
        **sizes,
        ast_kernel_stride_chan=sizes["ast_kernel_size_chan"],
        ast_kernel_stride_time=sizes["ast_kernel_size_time"],
        position_frames=frames,
        input_frames=frames,
    )
    check(_ssast_names(config, meta_weights(Ssast, config)), found)
    shape = config.patch_shape
    weights = encoder_from_timm(config, _encoder(found))
    weights["mask_emb"] = found["mask_embed"].flatten()
    for theirs, ours in _HEADS.items():
        for number, layer in (("0", "fc1"), ("2", "fc2")):
            for kind in _KINDS:
                value = found[f"{theirs}.{number}.{kind}"]
                if layer == "fc2":
                    value = _patches_to_time_first(value, shape)
                weights[f"{ours}.{layer}.{kind}"] = value
    return config, weights


def write_ssast(config: SsastConfig, weights: State) -> Weights:
    """Return the state dict of a SSAST file as its authors' code and s3prl read it."""
    return _wrapped(_ssast_names(config, weights))


def read_ast(
    state: State, stride: int | None = None, attention_heads: int | None = None
) -> tuple[AstConfig, Weights]:
    """Return configuration and weights from a published AST file or a fine-tuned SSAST.

    Args:
        state: the file's content, unwrapped.
        stride: patch stride in frames and mel bins; default: as published, 10 for patches of 16.
            The file does not contain it, and other strides may match the number of positions.
        attention_heads: H; default: D / 64, as in all published sizes.

    Raises:
        ValueError: a key is missing, unknown, or of another shape; it is named.
    """
    found = without(state[MODEL], _UNUSED)
    sizes = _sizes(found, attention_heads)
    time, mel = sizes["ast_kernel_size_time"], sizes["ast_kernel_size_chan"]
    shape = PatchShape(time, mel, *(stride or FINETUNING_STRIDES.get(n, n) for n in (time, mel)))
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
    config = AstConfig(
        **sizes,
        ast_kernel_stride_chan=shape.mel_stride,
        ast_kernel_stride_time=shape.time_stride,
        position_frames=frames,
        input_frames=frames,
        num_classes=len(tensor_of(found, "mlp_head.1.weight", 2)),
        pool=_pooling(state[MODEL])[0],
    )
    check(_ast_names(config, meta_weights(Ast, config)), found)
    weights = encoder_from_timm(config, _encoder(found))
    for theirs, ours in _AST_HEAD.items():
        for kind in _KINDS:
            weights[f"{ours}.{kind}"] = found[f"{theirs}.{kind}"]
    return config, weights


def write_ast(config: AstConfig, weights: State) -> Weights:
    """Return the state dict of an AST file as its authors' code reads it."""
    return _wrapped(_ast_names(config, weights))


def _has(state: State, key: str) -> bool:
    weights = state.get(MODEL)
    return isinstance(weights, Mapping) and key in weights and f"{ENCODER}cls_token" in weights


def _pooling(weights: State) -> tuple[str, bool]:
    """Return the pooling of a classifier with AST's names, and whether that is certain."""
    kernel = tensor_of(weights, f"{ENCODER}patch_embed.proj.weight", 4)
    if tuple(kernel.shape[2:]) != _AST_KERNEL:
        return "tokens", True
    biases = [weights[key] for key in _IMAGE_BIASES if isinstance(weights.get(key), Tensor)]
    if not biases:
        return "prefix", False
    return ("prefix", True) if any(bias.any() for bias in biases) else ("tokens", False)


def _wrapped(state: Weights) -> Weights:
    return {WRAPPER + name: value for name, value in state.items()}


def _ssast_names(config: SsastConfig, weights: State) -> Weights:
    shape = config.patch_shape
    state = {ENCODER + name: value for name, value in to_timm(config, weights).items()}
    state["mask_embed"] = weights["mask_emb"].reshape(1, 1, -1)
    for theirs, ours in _HEADS.items():
        for number, layer in (("0", "fc1"), ("2", "fc2")):
            for kind in _KINDS:
                value = weights[f"{ours}.{layer}.{kind}"]
                if layer == "fc2":
                    value = _patches_to_mel_first(value, shape)
                state[f"{theirs}.{number}.{kind}"] = value
    state["p_input_fdim"] = torch.tensor(NUM_MEL_BINS)
    state["p_input_tdim"] = torch.tensor(config.position_frames)
    return state


def _ast_names(config: AstConfig, weights: State) -> Weights:
    state = {ENCODER + name: value for name, value in to_timm(config, weights).items()}
    for theirs, ours in _AST_HEAD.items():
        for kind in _KINDS:
            state[f"{theirs}.{kind}"] = weights[f"{ours}.{kind}"]
    return state


def _sizes(state: State, attention_heads: int | None) -> dict[str, Any]:
    """Derive fields of the configuration from the shapes of the weights."""
    sizes = sizes_of(state, ENCODER)
    return {
        **sizes,
        "prefix_tokens": 2 if f"{ENCODER}dist_token" in state else 1,
        "encoder_attention_heads": attention_heads
        or max(1, sizes["encoder_embed_dim"] // HEAD_DIM),
    }


def _encoder(state: State) -> dict[str, Any]:
    return {key.removeprefix(ENCODER): v for key, v in state.items() if key.startswith(ENCODER)}


def _patches_to_time_first(rows: Tensor, shape: PatchShape) -> Tensor:
    """Reorder the patch values that a head outputs: (mel * time, ...) -> (time * mel, ...)."""
    return _swap(rows, shape.mel, shape.time)


def _patches_to_mel_first(rows: Tensor, shape: PatchShape) -> Tensor:
    """Invert :func:`_patches_to_time_first`."""
    return _swap(rows, shape.time, shape.mel)


def _swap(rows: Tensor, first: int, second: int) -> Tensor:
    """Transpose the factors of the first axis: (first * second, ...) -> (second * first, ...)."""
    grid: Tensor = rows.unflatten(0, (first, second))
    return grid.transpose(0, 1).flatten(0, 1)
