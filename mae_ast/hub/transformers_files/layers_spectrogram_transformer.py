"""Filterbank, position embeddings and transformer layers of spectrogram transformers.

    waveforms (B, L) -> log-mel (B, T, 128); tokens (B, N, D) -> transformer (B, N, D)

B clips, L samples at 16 kHz, T frames of 10 ms, N = T' F' patches in T' time steps of F' patches,
low mel bins first, K prefix tokens, D width.

Part of the Python package mae-ast (MIT licence), which is not needed to use this file.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_spectrogram_transformer import SpectrogramTransformerConfig

SAMPLE_RATE = 16_000
FRAME_LENGTH, FRAME_SHIFT, FFT_LENGTH = 400, 160, 512  # samples
NUM_MEL_BINS = 128
BLOCK_FRAMES = 16_384  # of the filterbank, to bound its memory


def num_frames(num_samples: Any) -> Any:
    """Return the number of frames of a number or tensor of samples."""
    return (num_samples - FRAME_LENGTH) // FRAME_SHIFT + 1


def num_samples(frames: int) -> int:
    """Return the minimum number of samples that gives a number of frames."""
    return FRAME_LENGTH + (frames - 1) * FRAME_SHIFT


def log_mel(waveforms: Tensor, window_type: str) -> Tensor:
    """Compute Kaldi's log-mel filterbank: (B, L) int16 or float in [-1, 1] -> (B, T, 128)."""
    window, banks = _filterbank(window_type, waveforms.device)
    scale = 1 / 32768 if waveforms.dtype == torch.int16 else 1.0
    blocks = []
    frames = waveforms.unfold(1, FRAME_LENGTH, FRAME_SHIFT)
    for block in frames.split(max(1, BLOCK_FRAMES // max(1, len(frames))), dim=1):
        block = block.float() * scale
        block = block - block.mean(-1, keepdim=True)
        block = block - 0.97 * torch.cat((block[..., :1], block[..., :-1]), -1)
        power = torch.fft.rfft(block * window, n=FFT_LENGTH).abs().square()
        blocks.append(F.linear(power, banks).clamp(min=torch.finfo(torch.float32).eps).log())
    return torch.cat(blocks, 1)


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def _filterbank(window_type: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the window (400,) and the triangular mel filters (128, 257)."""
    power = {"povey": 0.85, "hanning": 1.0}[window_type]
    window = torch.hann_window(FRAME_LENGTH, periodic=False).pow(power)
    low, high = (1127.0 * math.log(1 + hertz / 700) for hertz in (20.0, SAMPLE_RATE / 2))
    step = (high - low) / (NUM_MEL_BINS + 1)
    index = torch.arange(NUM_MEL_BINS)[:, None]
    left, centre, right = (low + (index + offset) * step for offset in (0.0, 1.0, 2.0))
    hertz = SAMPLE_RATE / FFT_LENGTH * torch.arange(FFT_LENGTH // 2)
    mel = 1127.0 * (1 + hertz / 700).log()
    filters = torch.minimum((mel - left) / (centre - left), (right - mel) / (right - centre))
    banks = F.pad(filters.clamp(min=0), (0, 1))  # no filter covers the Nyquist bin
    return window.to(device), banks.to(device)


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def fixed_positions(
    kind: str, num_prefix: int, grid: tuple[int, int], size: Any, stride: Any, dim: int, device: Any
) -> Tensor:
    """Return sinusoids (1, K + N, D) of a grid; those of the prefix tokens are zero.

    Positions are in units of the size (frames, mel bins) of a patch, and thus fractions if patches
    overlap.
    """
    steps, rows = (
        torch.arange(grid[axis], dtype=torch.float64) * (stride[axis] / size[axis])
        for axis in (0, 1)
    )
    if kind == "grid":  # half of the channels for mel, half for time
        rate = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
        angles = [steps[:, None] * rate, rows[:, None] * rate]
        in_time, in_mel = (torch.cat((angle.sin(), angle.cos()), 1) for angle in angles)
        table = torch.cat(
            (in_mel.expand(grid[0], -1, -1), in_time[:, None].expand(-1, grid[1], -1)), 2
        )
    else:  # 1-D, counted time step by time step; linear between two of them
        rate = torch.exp(torch.arange(0, dim, 2) * (-math.log(10000.0) / dim))

        def at(columns: Tensor) -> Tensor:
            places = columns[:, None] * (NUM_MEL_BINS / size[1]) + rows
            angle = places.float()[..., None] * rate
            return torch.stack((angle.sin(), angle.cos()), -1).flatten(2)

        whole = steps.floor()
        table = torch.lerp(at(whole), at(whole + 1), (steps - whole).float()[:, None, None])
    return F.pad(table.flatten(0, 1).float(), (0, 0, num_prefix, 0))[None].to(device)


class LearnedPositions(nn.Module):
    """Learned embeddings of the prefix tokens and of a grid of patches.

    A shorter axis uses the centre of the learned one, a longer axis interpolates it linearly.
    """

    def __init__(self, config: SpectrogramTransformerConfig) -> None:
        super().__init__()
        self.num_prefix = config.prefix_tokens
        self.grid = (config.num_columns(config.position_frames), config.per_column)
        num_positions = self.num_prefix + self.grid[0] * self.grid[1]
        self.table = nn.Parameter(torch.zeros(1, num_positions, config.encoder_embed_dim))

    def forward(self, grid: tuple[int, int], num_columns: Tensor | None) -> Tensor:
        """Return embeddings (1 or B, K + N, D) for a grid, of which a clip has (B,) columns."""
        if num_columns is None and grid == self.grid:
            return self.table
        if num_columns is None:
            num_columns = torch.tensor([grid[0]], device=self.table.device)
        prefix = self.table[:, : self.num_prefix]
        table = self.table[0, self.num_prefix :].unflatten(0, self.grid)
        places = self._places(num_columns, grid[0])
        low = places.floor().long()
        high = (low + 1).clamp(max=self.grid[0] - 1)
        weight = (places - low)[..., None, None].to(table.dtype)
        fitted = torch.lerp(table[low], table[high], weight).flatten(1, 2)
        return torch.cat((prefix.expand(len(fitted), -1, -1), fitted), 1)

    def _places(self, lengths: Tensor, size: int) -> Tensor:
        """Return fractional rows (B, size) of the learned axis for axes of ``lengths`` (B,)."""
        have, index = self.grid[0], torch.arange(size, device=lengths.device)
        lengths = lengths[:, None]
        centre = (have // 2 - lengths // 2 + index).float()
        stretched = (index + 0.5) * (have / lengths.clamp(min=1)) - 0.5
        return torch.where(lengths < have, centre, stretched).clamp(0, have - 1)


class SelfAttention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, config: SpectrogramTransformerConfig) -> None:
        super().__init__()
        width = config.encoder_embed_dim
        self.num_heads, self.dropout = config.encoder_attention_heads, config.attention_dropout
        self.k_proj, self.v_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.q_proj, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Compute (B, N, D) -> (B, N, D); ``mask`` (B, 1, 1, N) is True where to attend."""
        q, k, v = (
            project(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, mask, dropout_p=dropout)
        out: Tensor = self.out_proj(y.transpose(1, 2).flatten(2))
        return out


class TransformerLayer(GradientCheckpointingLayer):
    """Pre-norm or post-norm transformer layer, (B, N, D) -> (B, N, D)."""

    def __init__(self, config: SpectrogramTransformerConfig) -> None:
        super().__init__()
        width, eps = config.encoder_embed_dim, config.layer_norm_eps
        self.norm_first = config.layer_norm_first
        self.self_attn = SelfAttention(config)
        self.self_attn_layer_norm = nn.LayerNorm(width, eps)
        self.fc1 = nn.Linear(width, config.encoder_ffn_embed_dim)
        self.fc2 = nn.Linear(config.encoder_ffn_embed_dim, width)
        self.final_layer_norm = nn.LayerNorm(width, eps)
        self.dropout = nn.Dropout(config.dropout)
        self.activation_dropout = nn.Dropout(config.activation_dropout)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Compute the layer; ``mask`` as in :class:`SelfAttention`."""
        if self.norm_first:
            x = x + self.dropout(self.self_attn(self.self_attn_layer_norm(x), mask))
            return x + self.feed_forward(self.final_layer_norm(x))
        x = self.self_attn_layer_norm(x + self.dropout(self.self_attn(x, mask)))
        out: Tensor = self.final_layer_norm(x + self.feed_forward(x))
        return out

    def feed_forward(self, x: Tensor) -> Tensor:
        """Compute the feed-forward block: linear, GELU, linear."""
        out: Tensor = self.dropout(self.fc2(self.activation_dropout(F.gelu(self.fc1(x)))))
        return out


class Transformer(nn.Module):
    """Stack of layers, with a layer norm after the last (pre-norm) or before the first one."""

    def __init__(self, config: SpectrogramTransformerConfig) -> None:
        super().__init__()
        self.norm_first = config.layer_norm_first
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(TransformerLayer(config) for _ in range(config.encoder_layers))
        self.layer_norm = nn.LayerNorm(config.encoder_embed_dim, config.layer_norm_eps)

    def forward(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the output (B, N, D), and the input of the first and output of each layer."""
        x = self.dropout(x if self.norm_first else self.layer_norm(x))
        states = [x]
        for layer in self.layers:
            x = layer(x, mask)
            states.append(x)
        return self.layer_norm(x) if self.norm_first else x, tuple(states)
