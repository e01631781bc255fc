"""Convert ViT weights between timm's layout and ours, and between grids of patches.

timm (and with it the published AST and SSAST) fuses queries, keys and values, embeds patches with a
``Conv2d`` kernel over (mel, time), and orders tokens mel-first: n = f * T' + t; ours: t * F' + f.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from mae_ast.core.checkpoints import key_table
from mae_ast.core.checkpoints.key_table import Row, State, added, modules, split, swap_axes
from mae_ast.core.checkpoints.key_table import Weights as Weights
from mae_ast.core.checkpoints.state_dict import first_not_finite
from mae_ast.core.models.config import EncoderConfig, VitConfig
from mae_ast.core.nn.positions import fit_positions

# Modules of a layer: timm's names -> ours.
_LAYER = {
    "norm1": "self_attn_layer_norm",
    "attn.proj": "self_attn.out_proj",
    "norm2": "final_layer_norm",
    "mlp.fc1": "fc1",
    "mlp.fc2": "fc2",
}
# Fields that must be equal in a model and the one it is initialised from.
SHARED_KEYS = (
    *("ast_kernel_size_time", "ast_kernel_size_chan", "encoder_layers", "encoder_embed_dim"),
    *("encoder_ffn_embed_dim", "encoder_attention_heads", "window_type"),
)
IMAGE_HEADS = ("head.", "head_dist.", "pre_logits.")  # image classifiers, which are dropped
PREFIX_TOKENS = ("cls_token", "dist_token")


def rows(config: EncoderConfig) -> list[Row]:
    """Return the table of timm's DeiT ``VisionTransformer(in_chans=1)`` and our encoder."""
    return [
        *embedding_rows(config, PREFIX_TOKENS, "pos_embed", "patch_embed.proj"),
        *stack_rows(config.encoder_layers),
        statistics_row(config),
    ]


def embedding_rows(
    config: EncoderConfig, prefix_tokens: tuple[str, ...], positions: str, projection: str
) -> list[Row]:
    """Return the rows of everything below the first layer.

    Args:
        config: configuration of the encoder.
        prefix_tokens, positions, projection: names in the file.
    """
    num_prefix, shape = config.prefix_tokens, config.patch_shape
    table = key_table.swap_grid(config.position_grid, 1, num_prefix)
    kernel = (
        lambda kernel: [kernel.squeeze(1).transpose(1, 2).flatten(1)],
        lambda rows: [rows.unflatten(1, (shape.time, shape.mel)).transpose(1, 2).unsqueeze(1)],
    )
    return [
        Row(prefix_tokens[:num_prefix], "prefix_tokens", split(num_prefix, dim=1)[::-1]),
        Row(positions, "positions.table", table),
        Row(f"{projection}.weight", "post_extract_proj.weight", kernel),
        Row(f"{projection}.bias", "post_extract_proj.bias"),
    ]


def stack_rows(num_layers: int, ours: str = "encoder", prefix: str = "") -> Iterator[Row]:
    """Return the rows of a stack of pre-norm layers.

    Args:
        num_layers: number of layers in the stack.
        ours: name of the stack in our model.
        prefix: prefix of timm's names, ``blocks`` and ``norm``.
    """
    layer = f"{ours}.layers.*"
    attention = tuple(f"{layer}.self_attn.{name}_proj" for name in "qkv")
    yield from modules({f"{prefix}norm": f"{ours}.layer_norm"})
    yield from modules({f"{prefix}blocks.*.attn.qkv": attention}, num_layers, split(3))
    yield from modules(
        {f"{prefix}blocks.*.{name}": f"{layer}.{own}" for name, own in _LAYER.items()}, num_layers
    )


def statistics_row(config: EncoderConfig) -> Row:
    """Add the input statistics as buffers; published files do not contain them."""
    return added(
        {
            "batch_norm.running_mean": torch.tensor([config.input_mean]),
            "batch_norm.running_var": torch.tensor([config.input_std**2]),
            "batch_norm.num_batches_tracked": torch.tensor(0),
        }
    )


def to_timm(config: EncoderConfig, weights: State) -> Weights:
    """Convert an encoder to the state dict of timm's DeiT ``VisionTransformer(in_chans=1)``."""
    return key_table.write(rows(config), weights)


def from_timm(config: EncoderConfig, state: State, attention_heads: int | None = None) -> Weights:
    """Build an encoder from a timm ViT or DeiT, such as one trained on images.

    The patch embedding is averaged over the RGB channels (as in the AST paper; its code sums them).
    Positions are cropped or bilinearly interpolated to our grid. A distillation token is dropped
    if ``config`` has CLS only. The image classifier is dropped.

    Args:
        config: configuration of the encoder; its sizes must be those of ``state``.
        state: timm's state dict.
        attention_heads: H of the timm network, if known; it cannot be derived from the weights.

    Raises:
        ValueError: width, depth, heads or patches differ, or a key is missing, unknown, of another
            shape, or not finite; it is named.
    """
    found = without(state, IMAGE_HEADS)
    sizes = sizes_of(found)
    if attention_heads is not None:
        sizes["encoder_attention_heads"] = attention_heads
    check_same(config, sizes)
    if config.prefix_tokens == 2 and "dist_token" not in found:
        raise ValueError("missing: dist_token; use prefix_tokens=1 for networks without it")
    kernel, table = found.get("patch_embed.proj.weight"), found.get("pos_embed")
    is_image = False
    if isinstance(kernel, Tensor) and kernel.ndim == 4 and kernel.shape[1] > 1:
        is_image = True
        found["patch_embed.proj.weight"] = kernel.mean(1, keepdim=True)
    if isinstance(table, Tensor) and table.ndim == 3:
        if config.prefix_tokens == 1 and found.pop("dist_token", None) is not None:
            table = torch.cat((table[:, :1], table[:, 2:]), dim=1)
        found["pos_embed"] = _fit_image_positions(config, table, is_image)
    encoder = VitConfig(**{f.name: getattr(config, f.name) for f in dataclasses.fields(VitConfig)})
    weights = key_table.read(rows(config), encoder, found)
    if name := first_not_finite(found):
        raise ValueError(f"{name} holds NaN or infinity")
    return weights


def is_timm(names: Container[str]) -> bool:
    """Return whether names of weights look like those of a timm ViT."""
    return "patch_embed.proj.weight" in names and "pos_embed" in names


def sizes_of(state: State, prefix: str = "") -> dict[str, int]:
    """Derive fields of :class:`EncoderConfig` from the shapes in a state dict of timm's layout.

    Args:
        state: the state dict.
        prefix: prefix of timm's names in it.

    Raises:
        ValueError: a required key is missing, or has another number of dimensions; it is named.
    """
    kernel = tensor_of(state, f"{prefix}patch_embed.proj.weight", 4)
    return {
        "ast_kernel_size_chan": kernel.shape[2],
        "ast_kernel_size_time": kernel.shape[3],
        "encoder_layers": num_layers_of(state, f"{prefix}blocks."),
        "encoder_embed_dim": len(kernel),
        "encoder_ffn_embed_dim": len(tensor_of(state, f"{prefix}blocks.0.mlp.fc1.weight", 2)),
    }


def num_layers_of(state: State, prefix: str) -> int:
    """Count the numbers that follow ``prefix`` in the names of weights."""
    return len({key.removeprefix(prefix).split(".")[0] for key in state if key.startswith(prefix)})


def without(state: State, prefixes: Iterable[str]) -> dict[str, Any]:
    """Return a state dict without the keys that begin with one of ``prefixes``."""
    dropped = tuple(prefixes)
    return {key: value for key, value in state.items() if not str(key).startswith(dropped)}


def tensor_of(state: State, key: str, ndim: int) -> Tensor:
    """Return a tensor of a state dict.

    Raises:
        ValueError: it is missing, not a tensor, or does not have ``ndim`` dimensions.
    """
    value = state.get(key)
    if value is None:
        raise ValueError(f"the weights do not match the model; missing: {key}")
    if not isinstance(value, Tensor) or value.ndim != ndim:
        raise ValueError(f"{key} is not a tensor with {ndim} dimensions")
    return value


def check_same(config: EncoderConfig, pretrained: Mapping[str, Any]) -> None:
    """Refuse a configuration that differs from these fields of the pretrained model.

    Raises:
        ValueError: names each field that differs, with both values.
    """
    differing = [
        f"{key}={getattr(config, key)} differs from the pretrained model's {value}"
        for key, value in pretrained.items()
        if getattr(config, key) != value
    ]
    if differing:
        raise ValueError("; ".join(differing))


def _fit_image_positions(config: EncoderConfig, table: Tensor, is_image: bool) -> Tensor:
    """Fit the positions of a square image, or a spectrogram like ours, to our grid (mel-first)."""
    along_time, along_mel = config.position_grid
    num_prefix = config.prefix_tokens
    num_positions = table.shape[1] - num_prefix
    if num_positions == along_time * along_mel and not is_image:
        return table
    side = math.isqrt(max(num_positions, 0))
    if side < 1 or side * side != num_positions:
        raise ValueError(
            f"pos_embed has {num_positions} positions besides {num_prefix} prefix tokens; expected "
            f"a square number (images) or {along_mel} x {along_time} patches"
        )
    time_first = swap_axes(table[:, num_prefix:], (side, side), dim=1)
    fitted = fit_positions(time_first, (side, side), (along_time, along_mel))
    return torch.cat((table[:, :num_prefix], swap_axes(fitted, (along_time, along_mel), 1)), dim=1)
