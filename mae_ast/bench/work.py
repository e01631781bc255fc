"""What a training step must do, a clip: operations and bytes, counted, not measured.

Operations are those of matrix products, 2 m n k each, forward and backward, as training asks for
them: a backward that computes something a second time to save memory does not count for more.
Bytes are what the forward keeps for the backward without dropout and with fused attention, which
keeps nothing of size N x N. Letters as elsewhere: N patches, V visible, M masked, P values of a
patch, D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from mae_ast.core.frontend.fbank import num_frames
from mae_ast.core.frontend.masking import Grid, count_visible
from mae_ast.core.models.config import WINDOW, AudioMaeConfig, MaeAstConfig, SsastConfig
from mae_ast.core.nn.window_attention import Windows

# float32 weights, gradients, and two moments of AdamW.
OPTIMIZED_BYTES = 16
GRADIENT_BYTES = 4


@dataclass(frozen=True)
class Work:
    """A clip's share of a training step.

    Args:
        flops: forward and backward.
        saved_bytes: what the forward keeps for the backward.
        transient_bytes: what the loss needs for a moment on top of that.
    """

    flops: float
    saved_bytes: float
    transient_bytes: float


@dataclass(frozen=True)
class Split:
    """A clip's patches: N = V + M, on a grid along time and mel."""

    grid: Grid
    num_visible: int

    @property
    def num_patches(self) -> int:
        """N."""
        return math.prod(self.grid)

    @property
    def num_masked(self) -> int:
        """M."""
        return self.num_patches - self.num_visible


def split(config: Any, mask_type: str, num_samples: int) -> Split:
    """How many patches of a clip of so many samples at 16 kHz are seen."""
    grid = config.patch_shape.grid(num_frames(num_samples))
    num_patches = math.prod(grid)
    ratio = config.random_mask_prob
    if mask_type == "retain_spans":
        share = 1 - math.exp(-ratio)
        return Split(grid, num_patches - min(num_patches - 1, round(num_patches * share)))
    return Split(grid, count_visible(num_patches, ratio))


def step_work(config: Any, patches: Split, bfloat16: bool) -> Work:
    """A clip's share of a training step.

    Args:
        config: of a system that is pretrained.
        patches: of the clip.
        bfloat16: the transformers run under autocast.

    Raises:
        ValueError: another system, which is not pretrained.
    """
    hidden, patch_dim = patches.num_masked, config.patch_shape.dim
    differences = 4 * hidden * patch_dim  # to the targets, for MSE
    if isinstance(config, AudioMaeConfig):
        flops, saved = _audio_mae(config, patches, bfloat16)
        return Work(flops, saved + differences, transient_bytes=0.0)
    if isinstance(config, MaeAstConfig):
        flops, saved = _mae_ast(config, patches, bfloat16)
    elif isinstance(config, SsastConfig):
        flops, saved = _ssast(config, patches, bfloat16)
    else:
        raise ValueError(f"{type(config).__name__}: only operations of pretraining are counted")
    # InfoNCE: M x M logits, and a backward to the predictions alone, since targets are data.
    flops += 2 * 2.0 * hidden * hidden * patch_dim
    # The targets and the logits; then exponentials and gradients of these.
    saved += differences + 4 * (hidden * patch_dim + hidden * hidden)
    return Work(flops, saved, transient_bytes=8.0 * hidden * hidden)


def peak_bytes(num_parameters: int, work: Work, batch: int, bfloat16: bool) -> float:
    """The most memory of a step: when backward starts, or at its end, when all gradients are there.

    Under autocast, copies of the weights in bfloat16 are kept for the backward too.
    """
    copies = 2 if bfloat16 else 0
    start = float(num_parameters * (OPTIMIZED_BYTES - GRADIENT_BYTES + copies))
    start += batch * (work.saved_bytes + work.transient_bytes)
    return max(start, float(num_parameters * OPTIMIZED_BYTES))


def _mae_ast(config: MaeAstConfig, patches: Split, bfloat16: bool) -> tuple[float, float]:
    total, seen, hidden = patches.num_patches, patches.num_visible, patches.num_masked
    patch_dim, width = config.patch_shape.dim, config.encoder_embed_dim
    decoder_width = config.decoder_embed_dim
    decoder_ffn = config.decoder_ffn_embed_dim or config.encoder_ffn_embed_dim
    half = 2 if bfloat16 else 4

    encoder = _stack(config.encoder_layers, seen, seen, width, config.encoder_ffn_embed_dim, half)
    decoder = _stack(config.decoder_layers, total, hidden, decoder_width, decoder_ffn, half)
    flops = encoder[0] + decoder[0] + _embedding_flops(seen, patch_dim, width)
    flops += 2 * 3 * 2.0 * hidden * decoder_width * patch_dim
    inputs = 2 if bfloat16 else 1  # of both heads: one tensor, or two casts
    saved = encoder[1] + decoder[1] + half * (seen * patch_dim + inputs * hidden * decoder_width)
    if width != decoder_width:
        flops += 3 * 2.0 * seen * width * decoder_width
        saved += half * seen * width
    return flops, saved


def _ssast(config: SsastConfig, patches: Split, bfloat16: bool) -> tuple[float, float]:
    total, hidden = patches.num_patches, patches.num_masked
    patch_dim, width = config.patch_shape.dim, config.encoder_embed_dim
    half = 2 if bfloat16 else 4
    passes = 2 if config.two_pass else 1

    tokens = total + config.prefix_tokens
    encoder = _stack(
        config.encoder_layers, tokens, hidden, width, config.encoder_ffn_embed_dim, half
    )
    flops = passes * (encoder[0] + _embedding_flops(total, patch_dim, width))
    flops += 2 * 3 * 2.0 * hidden * width * (width + patch_dim)
    saved = passes * (encoder[1] + half * total * patch_dim)
    inputs = 2 if bfloat16 or config.two_pass else 1  # of both heads: one tensor, or two casts
    saved += half * hidden * width * (inputs + 2)
    return flops, saved


def _audio_mae(config: AudioMaeConfig, patches: Split, bfloat16: bool) -> tuple[float, float]:
    total, hidden = patches.num_patches, patches.num_masked
    patch_dim, width = config.patch_shape.dim, config.encoder_embed_dim
    decoder_width, ffn = config.decoder_embed_dim, config.decoder_ffn_embed_dim
    half = 2 if bfloat16 else 4

    seen = patches.num_visible + config.prefix_tokens
    encoder = _stack(config.encoder_layers, seen, seen, width, config.encoder_ffn_embed_dim, half)
    flops = encoder[0] + _embedding_flops(patches.num_visible, patch_dim, width)
    flops += 3 * 2.0 * (seen * width * decoder_width + hidden * decoder_width * patch_dim)
    saved = encoder[1] + half * (patches.num_visible * patch_dim + seen * width)

    is_global = all(shift is None for shift in config.shifts)
    tokens = total + (config.prefix_tokens if is_global else 0)
    for number, shift in enumerate(config.shifts):
        queries = hidden if number == len(config.shifts) - 1 else tokens
        places, keys = tokens, tokens
        if shift is not None:  # all places of all windows, whatever is wanted
            places = queries = Windows(patches.grid, WINDOW, shift).num_places
            keys = math.prod(WINDOW)
        flops += 3 * _layer_flops(places, queries, decoder_width, ffn, keys)
        saved += _layer_bytes(places, queries, decoder_width, ffn, half)
    # The stack's own layer norm keeps its input in float32, the head its own.
    return flops, saved + (4 + half) * hidden * decoder_width


def _embedding_flops(tokens: int, patch_dim: int, width: int) -> float:
    """Forward, and a backward to the weights alone, since patches are data."""
    return 2 * 2.0 * tokens * patch_dim * width


def _stack(
    layers: int, tokens: int, wanted: int, width: int, ffn: int, half: int
) -> tuple[float, float]:
    """Operations and bytes of a transformer whose last layer computes ``wanted`` tokens only."""
    all_but_last = (layers - 1) * _layer_flops(tokens, tokens, width, ffn)
    flops = 3 * (all_but_last + _layer_flops(tokens, wanted, width, ffn))
    saved = (layers - 1) * _layer_bytes(tokens, tokens, width, ffn, half)
    saved += _layer_bytes(tokens, wanted, width, ffn, half)
    if wanted != tokens:
        saved += half * wanted * width  # the queries' own input
    return flops, saved + 4 * tokens * width  # and the input of the stack's own layer norm


def _layer_flops(tokens: int, queries: int, width: int, ffn: int, keys: int | None = None) -> float:
    """Of a layer's forward; a query attends to ``keys`` of the tokens, or to all."""
    projections = 2.0 * width * width * (2 * queries + 2 * tokens)
    attention = 4.0 * queries * (keys or tokens) * width
    return projections + attention + 4.0 * queries * width * ffn


def _layer_bytes(tokens: int, queries: int, width: int, ffn: int, half: int) -> float:
    """Of a layer; ``half`` is the size of what matrix products take.

    Attention keeps its input, queries, keys, values and output; the feed-forward block its input
    and both sides of GELU; the two layer norms their inputs, which are float32.
    """
    attention = half * width * (3 * tokens + 2 * queries)
    feed_forward = half * queries * (width + 2 * ffn)
    return attention + feed_forward + 2 * 4 * queries * width
