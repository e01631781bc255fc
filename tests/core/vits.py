"""Small models of the AST family with weights that show errors, and their published recipe."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)

SMALL: dict[str, Any] = {
    "encoder_layers": 2,
    "encoder_embed_dim": 24,
    "encoder_ffn_embed_dim": 40,
    "encoder_attention_heads": 3,
    "position_frames": 128,
}
FRAME_TOKENS = {
    "ast_kernel_size_chan": 128,
    "ast_kernel_stride_chan": 128,
    "ast_kernel_size_time": 2,
    "ast_kernel_stride_time": 2,
}


def with_random_weights(model: M) -> M:
    """Norms that do something, and attention that is not uniform."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            is_scale = value.ndim == 1 and name.endswith("weight")  # of a layer norm
            noise = torch.randn(value.shape, generator=generator)
            value.copy_(1 + 0.2 * noise if is_scale else noise * value.shape[-1] ** -0.5)
    return model


def log_mel_like(*shape: int, seed: int = 0) -> Tensor:
    """Far from mean 0 and deviation 1, like log-mel."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator) * 4.2 - 6.5


def positions_of_the_recipe(table: Tensor, have: tuple[int, int], want: tuple[int, int]) -> Tensor:
    """(1, N, D) mel-first -> (1, N', D), step by step as published; grids are (mel, time).

    An axis that is shorter is cut around its middle, one that is not goes through torch's own
    bilinear interpolation. (Published, the cut along mel ends where one along time would.)
    """
    x = table.transpose(1, 2).reshape(1, -1, *have)
    (mel, time), (mel_wanted, time_wanted) = have, want
    if time_wanted < time:
        start = int(time / 2) - int(time_wanted / 2)
        x = x[:, :, :, start : start + time_wanted]
    else:
        x = nn.functional.interpolate(x, size=(mel, time_wanted), mode="bilinear")
    if mel_wanted < mel:
        start = int(mel / 2) - int(mel_wanted / 2)
        x = x[:, :, start : start + mel_wanted]
    else:
        x = nn.functional.interpolate(x, size=(mel_wanted, time_wanted), mode="bilinear")
    return x.reshape(1, -1, mel_wanted * time_wanted).transpose(1, 2)


def mel_first(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, N, D) in the order of time x mel -> in the order of mel x time."""
    return tokens.unflatten(1, grid).transpose(1, 2).flatten(1, 2)
