"""Files that the authors of AST and SSAST published, to and from ours.

Both wrap timm's layout in ``module.v.``; a SSAST file adds the mask token, the two heads of
pretraining and the size of its spectrograms, an AST file its classifier. Neither says with how
many attention heads, strides or input statistics: those are the published ones unless told.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mae_ast.core.ast import Ast
from mae_ast.core.config_ast import AstConfig
from mae_ast.core.config_ssast import SsastConfig
from mae_ast.core.fbank import NUM_MEL_BINS
from mae_ast.core.patches import PatchShape
from mae_ast.core.ssast import Ssast
from mae_ast.core.vit_weights import (
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

ENCODER = "module.v."
STRIDE = 10  # of AST's patches, in most published files
HEAD_DIM = 64  # of all published sizes
FRAMES = (1024, 512, 128)  # of AudioSet, ESC-50 and Speech Commands clips

_HEADS = {"cpredlayer": "final_proj_classification", "gpredlayer": "final_proj_reconstruction"}
_AST_HEAD = {"module.mlp_head.0": "head.layer_norm", "module.mlp_head.1": "head.linear"}
_KINDS = ("weight", "bias")
_UNUSED = tuple(ENCODER + head for head in IMAGE_HEADS)


def is_ssast(state: State) -> bool:
    """Whether a state dict looks like a published SSAST file."""
    return "module.mask_embed" in state and f"{ENCODER}cls_token" in state


def is_ast(state: State) -> bool:
    """Whether a state dict looks like a published AST file."""
    return "module.mlp_head.1.weight" in state and f"{ENCODER}cls_token" in state


def read_ssast(state: State, attention_heads: int | None = None) -> tuple[SsastConfig, Weights]:
    """Configuration and weights out of a published SSAST file.

    Args:
        state: the file's content.
        attention_heads: H; default: the width over 64, as in all published sizes.

    Raises:
        ValueError: a key is missing, unknown, or of another shape; it is named.
    """
    frames, mel = (int(tensor_of(state, f"module.p_input_{axis}dim", 0)) for axis in "tf")
    if mel != NUM_MEL_BINS:
        raise ValueError(f"module.p_input_fdim is {mel}; only {NUM_MEL_BINS} mel bins are known")
    sizes = _sizes(state, attention_heads)
    config = SsastConfig(
        **sizes,
        ast_kernel_stride_chan=sizes["ast_kernel_size_chan"],
        ast_kernel_stride_time=sizes["ast_kernel_size_time"],
        position_frames=frames,
        input_frames=frames,
    )
    config.validate()
    found = without(state, _UNUSED)
    check(write_ssast(config, meta_weights(Ssast, config)), found)
    shape = config.patch_shape
    weights = encoder_from_timm(config, _encoder(found))
    weights["mask_emb"] = found["module.mask_embed"].flatten()
    for theirs, ours in _HEADS.items():
        for number, layer in (("0", "fc1"), ("2", "fc2")):
            for kind in _KINDS:
                value = found[f"module.{theirs}.{number}.{kind}"]
                if layer == "fc2":
                    value = _patches_to_time_first(value, shape)
                weights[f"{ours}.{layer}.{kind}"] = value
    return config, weights


def write_ssast(config: SsastConfig, weights: State) -> Weights:
    """The state dict of a SSAST file as its authors' program and s3prl read it."""
    shape = config.patch_shape
    state = {ENCODER + name: value for name, value in to_timm(config, weights).items()}
    state["module.mask_embed"] = weights["mask_emb"].reshape(1, 1, -1)
    for theirs, ours in _HEADS.items():
        for number, layer in (("0", "fc1"), ("2", "fc2")):
            for kind in _KINDS:
                value = weights[f"{ours}.{layer}.{kind}"]
                if layer == "fc2":
                    value = _patches_to_mel_first(value, shape)
                state[f"module.{theirs}.{number}.{kind}"] = value
    state["module.p_input_fdim"] = torch.tensor(NUM_MEL_BINS)
    state["module.p_input_tdim"] = torch.tensor(config.position_frames)
    return state


def read_ast(
    state: State, stride: int = STRIDE, attention_heads: int | None = None
) -> tuple[AstConfig, Weights]:
    """Configuration and weights out of a published AST file.

    Args:
        state: the file's content.
        stride: frames and mel bins from a patch to the next; the file does not tell, and another
            one may fit the number of its positions too.
        attention_heads: H; default: the width over 64, as in all published sizes.

    Raises:
        ValueError: a key is missing, unknown, or of another shape; it is named.
    """
    sizes = _sizes(state, attention_heads)
    shape = PatchShape(sizes["ast_kernel_size_time"], sizes["ast_kernel_size_chan"], stride, stride)
    table = tensor_of(state, f"{ENCODER}pos_embed", 3)
    along_time, rest = divmod(table.shape[1] - sizes["prefix_tokens"], shape.per_column)
    if rest or along_time < 1:
        raise ValueError(
            f"{ENCODER}pos_embed is {tuple(table.shape)}; with a stride of {stride}, its places "
            f"beside {sizes['prefix_tokens']} prefix tokens are a multiple of {shape.per_column}"
        )
    least = shape.num_frames_of(along_time)
    frames = next((n for n in FRAMES if shape.grid(n)[0] == along_time), least)
    config = AstConfig(
        **sizes,
        ast_kernel_stride_chan=stride,
        ast_kernel_stride_time=stride,
        position_frames=frames,
        input_frames=frames,
        num_classes=len(tensor_of(state, "module.mlp_head.1.weight", 2)),
    )
    config.validate()
    found = without(state, _UNUSED)
    check(write_ast(config, meta_weights(Ast, config)), found)
    weights = encoder_from_timm(config, _encoder(found))
    for theirs, ours in _AST_HEAD.items():
        for kind in _KINDS:
            weights[f"{ours}.{kind}"] = found[f"{theirs}.{kind}"]
    return config, weights


def write_ast(config: AstConfig, weights: State) -> Weights:
    """The state dict of an AST file as its authors' program reads it."""
    state = {ENCODER + name: value for name, value in to_timm(config, weights).items()}
    for theirs, ours in _AST_HEAD.items():
        for kind in _KINDS:
            state[f"{theirs}.{kind}"] = weights[f"{ours}.{kind}"]
    return state


def _sizes(state: State, attention_heads: int | None) -> dict[str, Any]:
    """Fields of the configuration that shapes tell."""
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
    """(mel * time, ...) -> (time * mel, ...): a head's outputs are a patch's values."""
    return _swap(rows, shape.mel, shape.time)


def _patches_to_mel_first(rows: Tensor, shape: PatchShape) -> Tensor:
    """The way back."""
    return _swap(rows, shape.time, shape.mel)


def _swap(rows: Tensor, first: int, second: int) -> Tensor:
    """(first * second, ...) -> (second * first, ...)."""
    apart: Tensor = rows.unflatten(0, (first, second))
    return apart.transpose(0, 1).flatten(0, 1)
