"""Count the operations and bytes of a training step per clip, without measuring.

Operations are those of matrix products, 2 m n k each, in forward and backward; recomputation in the
backward to save memory is not counted. Bytes are the activations that the forward saves for the
backward, without dropout and with fused attention, which saves nothing of size N x N. Letters as
elsewhere: N patches, V visible, M masked, P values per patch, D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from mae_ast.core.frontend.fbank import num_frames
from mae_ast.core.frontend.masking import Grid, count_visible
from mae_ast.core.models.config import WINDOW, AudioMaeConfig, MaeAstConfig, SsastConfig
from mae_ast.core.nn.window_attention import Windows

# Bytes per parameter: float32 weights, gradients, and the two moments of AdamW.
OPTIMIZED_BYTES = 16
GRADIENT_BYTES = 4


@dataclass(frozen=True)
class Work:
    """Operations and bytes of a training step per clip.

    Args:
        flops: operations of forward and backward.
        saved_bytes: bytes that the forward saves for the backward.
        transient_bytes: further bytes that the loss needs temporarily.
    """

    flops: float
    saved_bytes: float
    transient_bytes: float


@dataclass(frozen=True)
class Split:
    """Number of visible and masked patches of a clip, N = V + M, on a grid (time, mel)."""

    grid: Grid
    num_visible: int

    @property
    def num_patches(self) -> int:
        """Return N."""
        return math.prod(self.grid)

    @property
    def num_masked(self) -> int:
        """Return M."""
        return self.num_patches - self.num_visible


def split(config: Any, mask_type: str, num_samples: int) -> Split:
    """Count the visible and masked patches of a clip of ``num_samples`` at 16 kHz."""
    grid = config.patch_shape.grid(num_frames(num_samples))
    num_patches = math.prod(grid)
    ratio = config.random_mask_prob
    if mask_type == "retain_spans":
        masked_ratio = 1 - math.exp(-ratio)
        return Split(grid, num_patches - min(num_patches - 1, round(num_patches * masked_ratio)))
    return Split(grid, count_visible(num_patches, ratio))


def step_work(config: Any, patches: Split, bfloat16: bool) -> Work:
    """Count the operations and bytes of a training step per clip.

    Args:
        config: configuration of a system that is pretrained.
        patches: patches of the clip.
        bfloat16: whether the transformers run under autocast.

    Raises:
        ValueError: the system is not pretrained.
    """
    masked, patch_dim = patches.num_masked, config.patch_shape.dim
    differences = 4 * masked * patch_dim  # to the targets, for MSE
    if isinstance(config, AudioMaeConfig):
        flops, saved = _audio_mae(config, patches, bfloat16)
        return Work(flops, saved + differences, transient_bytes=0.0)
    if isinstance(config, MaeAstConfig):
        flops, saved = _mae_ast(config, patches, bfloat16)
    elif isinstance(config, SsastConfig):
        flops, saved = _ssast(config, patches, bfloat16)
    else:
        raise ValueError(f"{type(config).__name__}: only operations of pretraining are counted")
    # InfoNCE: M x M logits; its backward goes to the predictions only, since targets are data.
    flops += 2 * 2.0 * masked * masked * patch_dim
    # The targets and the logits; temporarily, their exponentials and gradients.
    saved += differences + 4 * (masked * patch_dim + masked * masked)
    return Work(flops, saved, transient_bytes=8.0 * masked * masked)


def peak_bytes(num_parameters: int, work: Work, batch: int, bfloat16: bool) -> float:
    """Estimate the peak memory of a step in bytes.

    The peak is reached at the start of the backward, or at its end, when all gradients exist. Under
    autocast, bfloat16 copies of the weights are saved for the backward, too.
    """
    copies = 2 if bfloat16 else 0
    start = float(num_parameters * (OPTIMIZED_BYTES - GRADIENT_BYTES + copies))
    start += batch * (work.saved_bytes + work.transient_bytes)
    return max(start, float(num_parameters * OPTIMIZED_BYTES))


def _mae_ast(config: MaeAstConfig, patches: Split, bfloat16: bool) -> tuple[float, float]:
    total, visible, masked = patches.num_patches, patches.num_visible, patches.num_masked
    patch_dim, width = config.patch_shape.dim, config.encoder_embed_dim
    decoder_width = config.decoder_embed_dim
    decoder_ffn = config.decoder_ffn_embed_dim or config.encoder_ffn_embed_dim
    item_bytes = 2 if bfloat16 else 4

    encoder = _stack(
        config.encoder_layers, visible, visible, width, config.encoder_ffn_embed_dim, item_bytes
    )
    decoder = _stack(config.decoder_layers, total, masked, decoder_width, decoder_ffn, item_bytes)
    flops = encoder[0] + decoder[0] + _embedding_flops(visible, patch_dim, width)
    flops += 2 * 3 * 2.0 * masked * decoder_width * patch_dim
    inputs = 2 if bfloat16 else 1  # inputs of both heads: one tensor, or two casts
    saved = encoder[1] + decoder[1]
    saved += item_bytes * (visible * patch_dim + inputs * masked * decoder_width)
    if width != decoder_width:
        flops += 3 * 2.0 * visible * width * decoder_width
        saved += item_bytes * visible * width
    return flops, saved


def _ssast(config: SsastConfig, patches: Split, bfloat16: bool) -> tuple[float, float]:
    total, masked = patches.num_patches, patches.num_masked
    patch_dim, width = config.patch_shape.dim, config.encoder_embed_dim
    item_bytes = 2 if bfloat16 else 4
    passes = 2 if config.two_pass else 1

    tokens = total + config.prefix_tokens
    encoder = _stack(
        config.encoder_layers, tokens, masked, width, config.encoder_ffn_embed_dim, item_bytes
    )
    flops = passes * (encoder[0] + _embedding_flops(total, patch_dim, width))
    flops += 2 * 3 * 2.0 * masked * width * (width + patch_dim)
    saved = passes * (encoder[1] + item_bytes * total * patch_dim)
    # Inputs of both heads: one tensor, or two casts.
    inputs = 2 if bfloat16 or config.two_pass else 1
    saved += item_bytes * masked * width * (inputs + 2)
    return flops, saved


def _audio_mae(config: AudioMaeConfig, patches: Split, bfloat16: bool) -> tuple[float, float]:
    total, masked = patches.num_patches, patches.num_masked
    patch_dim, width = config.patch_shape.dim, config.encoder_embed_dim
    decoder_width, ffn = config.decoder_embed_dim, config.decoder_ffn_embed_dim
    item_bytes = 2 if bfloat16 else 4

    visible = patches.num_visible + config.prefix_tokens
    encoder = _stack(
        config.encoder_layers, visible, visible, width, config.encoder_ffn_embed_dim, item_bytes
    )
    flops = encoder[0] + _embedding_flops(patches.num_visible, patch_dim, width)
    flops += 3 * 2.0 * (visible * width * decoder_width + masked * decoder_width * patch_dim)
    saved = encoder[1] + item_bytes * (patches.num_visible * patch_dim + visible * width)

    is_global = all(shift is None for shift in config.shifts)
    tokens = total + (config.prefix_tokens if is_global else 0)
    for number, shift in enumerate(config.shifts):
        queries = masked if number == len(config.shifts) - 1 else tokens
        places, keys = tokens, tokens
        if shift is not None:  # all places of all windows are computed
            places = queries = Windows(patches.grid, WINDOW, shift).num_places
            keys = math.prod(WINDOW)
        flops += 3 * _layer_flops(places, queries, decoder_width, ffn, keys)
        saved += _layer_bytes(places, queries, decoder_width, ffn, item_bytes)
    # The layer norm of the stack saves its input in float32, the head its own.
    return flops, saved + (4 + item_bytes) * masked * decoder_width


def _embedding_flops(tokens: int, patch_dim: int, width: int) -> float:
    """Count forward, and backward to the weights only, since patches are data."""
    return 2 * 2.0 * tokens * patch_dim * width


def _stack(
    layers: int, tokens: int, outputs: int, width: int, ffn: int, item_bytes: int
) -> tuple[float, float]:
    """Count operations and bytes of a transformer whose last layer outputs ``outputs`` tokens."""
    all_but_last = (layers - 1) * _layer_flops(tokens, tokens, width, ffn)
    flops = 3 * (all_but_last + _layer_flops(tokens, outputs, width, ffn))
    saved = (layers - 1) * _layer_bytes(tokens, tokens, width, ffn, item_bytes)
    saved += _layer_bytes(tokens, outputs, width, ffn, item_bytes)
    if outputs != tokens:
        saved += item_bytes * outputs * width  # the separate input of the queries
    return flops, saved + 4 * tokens * width  # and the input of the stack's layer norm


def _layer_flops(tokens: int, queries: int, width: int, ffn: int, keys: int | None = None) -> float:
    """Count the operations of a layer's forward; a query attends to ``keys`` tokens, or to all."""
    projections = 2.0 * width * width * (2 * queries + 2 * tokens)
    attention = 4.0 * queries * (keys or tokens) * width
    return projections + attention + 4.0 * queries * width * ffn


def _layer_bytes(tokens: int, queries: int, width: int, ffn: int, item_bytes: int) -> float:
    """Count the bytes that a layer saves; ``item_bytes`` is the size of an activation.

    Attention saves its input, queries, keys, values and output; the feed-forward block its input
    and both sides of GELU; the two layer norms their inputs in float32.
    """
    attention = item_bytes * width * (3 * tokens + 2 * queries)
    feed_forward = item_bytes * queries * (width + 2 * ffn)
    return attention + feed_forward + 2 * 4 * queries * width
