"""Convert ViT weights between timm's layout and ours, and between grids of patches.

timm (and with it the published AST and SSAST) fuses queries, keys and values, embeds patches with a
``Conv2d`` kernel over (mel, time), and orders tokens mel-first: n = f * T' + t; ours: t * F' + f.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from mae_ast.core.checkpoints.state_dict import first_not_finite, mismatches
from mae_ast.core.models.config import EncoderConfig
from mae_ast.core.models.encoder import Encoder
from mae_ast.core.nn.positions import fit_positions

State = Mapping[str, Any]
Weights = dict[str, Tensor]

# Modules of a layer: timm's names -> ours, except the fused queries, keys and values.
_LAYER = {
    "norm1": "self_attn_layer_norm",
    "attn.proj": "self_attn.out_proj",
    "norm2": "final_layer_norm",
    "mlp.fc1": "fc1",
    "mlp.fc2": "fc2",
}
_QKV = "attn.qkv"
_KINDS = ("weight", "bias")
# Fields that must be equal in a model and the one it is initialised from.
SHARED_KEYS = (
    *("ast_kernel_size_time", "ast_kernel_size_chan", "encoder_layers", "encoder_embed_dim"),
    *("encoder_ffn_embed_dim", "encoder_attention_heads", "window_type"),
)
IMAGE_HEADS = ("head.", "head_dist.", "pre_logits.")  # image classifiers, which are dropped


def to_timm(config: EncoderConfig, weights: State) -> Weights:
    """Convert an encoder to the state dict of timm's DeiT ``VisionTransformer(in_chans=1)``."""
    shape, grid = config.patch_shape, config.position_grid
    prefix, table = weights["prefix_tokens"], weights["positions.table"]
    num_prefix = config.prefix_tokens
    state = {"cls_token": prefix[:, :1]}
    if num_prefix == 2:
        state["dist_token"] = prefix[:, 1:]
    state["pos_embed"] = torch.cat(
        (table[:, :num_prefix], swap_axes(table[:, num_prefix:], grid)), dim=1
    )
    state["patch_embed.proj.weight"] = kernel_of(
        weights["post_extract_proj.weight"], shape.time, shape.mel
    )
    state["patch_embed.proj.bias"] = weights["post_extract_proj.bias"]
    return state | stack_to_timm(weights, config.encoder_layers)


def stack_to_timm(
    weights: State, num_layers: int, ours: str = "encoder", prefix: str = ""
) -> Weights:
    """Convert a stack of pre-norm layers to timm's layout.

    Args:
        weights: state dict of our model.
        num_layers: number of layers in the stack.
        ours: name of the stack in our model.
        prefix: prefix of timm's names, ``blocks`` and ``norm``.
    """
    state = {theirs: weights[own] for theirs, own in _layer_names(num_layers, ours, prefix).items()}
    for layer in range(num_layers):
        for kind in _KINDS:
            state[f"{prefix}blocks.{layer}.{_QKV}.{kind}"] = torch.cat(
                [weights[name] for name in _projections(layer, kind, ours)]
            )
    return state


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
    blocks = f"{prefix}blocks."
    return {
        "ast_kernel_size_chan": kernel.shape[2],
        "ast_kernel_size_time": kernel.shape[3],
        "encoder_layers": len(
            {key.removeprefix(blocks).split(".")[0] for key in state if key.startswith(blocks)}
        ),
        "encoder_embed_dim": len(kernel),
        "encoder_ffn_embed_dim": len(tensor_of(state, f"{blocks}0.mlp.fc1.weight", 2)),
    }


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
    check(to_timm(config, meta_weights(Encoder, config)), found)
    if name := first_not_finite(found):
        raise ValueError(f"{name} holds NaN or infinity")
    return encoder_from_timm(config, found)


def encoder_from_timm(config: EncoderConfig, state: State) -> Weights:
    """Invert :func:`to_timm`; keys and shapes must have been checked."""
    num_prefix, (along_time, along_mel) = config.prefix_tokens, config.position_grid
    tokens = [state[name] for name in ("cls_token", "dist_token")[:num_prefix]]
    table = state["pos_embed"]
    weights: Weights = {
        **statistics(config),
        "prefix_tokens": torch.cat(tokens, dim=1),
        "positions.table": torch.cat(
            (table[:, :num_prefix], swap_axes(table[:, num_prefix:], (along_mel, along_time))),
            dim=1,
        ),
        "post_extract_proj.weight": rows_of(state["patch_embed.proj.weight"]),
        "post_extract_proj.bias": state["patch_embed.proj.bias"],
    }
    return weights | stack_from_timm(state, config.encoder_layers)


def stack_from_timm(
    state: State, num_layers: int, ours: str = "encoder", prefix: str = ""
) -> Weights:
    """Invert :func:`stack_to_timm`."""
    weights = {own: state[theirs] for theirs, own in _layer_names(num_layers, ours, prefix).items()}
    for layer in range(num_layers):
        for kind in _KINDS:
            fused = state[f"{prefix}blocks.{layer}.{_QKV}.{kind}"]
            weights.update(zip(_projections(layer, kind, ours), fused.chunk(3), strict=True))
    return weights


def swap_axes(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Reorder tokens (1, N, D) on a grid (A, B) from A-major to B-major order."""
    on_grid: Tensor = tokens.unflatten(1, grid)
    return on_grid.transpose(1, 2).flatten(1, 2)


def kernel_of(rows: Tensor, time: int, mel: int) -> Tensor:
    """Convert linear weights (D, time * mel) to a ``Conv2d`` kernel (D, 1, mel, time)."""
    kernel: Tensor = rows.unflatten(1, (time, mel))
    return kernel.transpose(1, 2).unsqueeze(1)


def rows_of(kernel: Tensor) -> Tensor:
    """Convert a ``Conv2d`` kernel (D, 1, mel, time) to linear weights (D, time * mel)."""
    return kernel.squeeze(1).transpose(1, 2).flatten(1)


def statistics(config: EncoderConfig) -> Weights:
    """Return the input statistics as buffers; published files do not contain them."""
    return {
        "batch_norm.running_mean": torch.tensor([config.input_mean]),
        "batch_norm.running_var": torch.tensor([config.input_std**2]),
        "batch_norm.num_batches_tracked": torch.tensor(0),
    }


def meta_weights(kind: type[Encoder], config: Any) -> Weights:
    """Return the state dict of a model on the meta device: names and shapes only."""
    with torch.device("meta"):
        weights: Weights = kind(config).state_dict()
    return weights


def without(state: State, prefixes: Iterable[str]) -> dict[str, Any]:
    """Return a state dict without the keys that begin with one of ``prefixes``."""
    dropped = tuple(prefixes)
    return {key: value for key, value in state.items() if not str(key).startswith(dropped)}


def check(wanted: State, found: State) -> None:
    """Compare the keys and shapes in a file with those of the model.

    Raises:
        ValueError: a key is missing, unknown, not a tensor, or of another shape; it is named.
    """
    problems = mismatches(wanted, found)
    if problems:
        raise ValueError(f"the weights do not match the model; {problems}")


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
    fitted = fit_positions(
        swap_axes(table[:, num_prefix:], (side, side)), (side, side), (along_time, along_mel)
    )
    return torch.cat((table[:, :num_prefix], swap_axes(fitted, (along_time, along_mel))), dim=1)


def _layer_names(num_layers: int, stack: str, prefix: str) -> dict[str, str]:
    """Map timm's names to ours, for weights that are copied unchanged."""
    names = {f"{prefix}norm.{kind}": f"{stack}.layer_norm.{kind}" for kind in _KINDS}
    for layer in range(num_layers):
        for theirs, ours in _LAYER.items():
            for kind in _KINDS:
                name = f"{prefix}blocks.{layer}.{theirs}.{kind}"
                names[name] = f"{stack}.layers.{layer}.{ours}.{kind}"
    return names


def _projections(layer: int, kind: str, stack: str) -> list[str]:
    """Return the names of our query, key and value projections, in the order timm fuses them."""
    return [f"{stack}.layers.{layer}.self_attn.{name}_proj.{kind}" for name in "qkv"]
