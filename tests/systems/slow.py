"""Slow, readable reimplementations of each system's prediction, one clip at a time.

They take a model, the normalised patches (N, P) of a clip and the ids of the masked ones, and
return target, reconstruction and classification, (M, P) each; ``None``: there is no such head. They
use the model's modules, but none of its methods.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import gelu

from mae_ast.core.nn.positions import grid_positions

Heads = list[Tensor | None]


def position(n: int, dim: int) -> Tensor:
    """Return the sinusoidal embedding (D,) of position n."""
    angles = [n / 10000 ** (2 * (c // 2) / dim) for c in range(dim)]
    return torch.tensor([math.cos(a) if c % 2 else math.sin(a) for c, a in enumerate(angles)])


def mae_ast(model: Any, patches: Tensor, masked: list[int]) -> Heads:
    """Encode the visible patches; decode them with mask tokens in the other places."""
    config = model.config
    visible = [n for n in range(len(patches)) if n not in masked]
    tokens = [
        model.post_extract_proj(patches[n]) + position(n, config.encoder_embed_dim) for n in visible
    ]
    encoded = model.encoder(torch.stack(tokens)[None])[0]
    inputs = []
    for n in range(len(patches)):
        token = model.decoder_mask_emb
        if n in visible:
            token = model.post_enc_proj(encoded[visible.index(n)])
        inputs.append(token + position(n, config.decoder_embed_dim))
    decoded = model.decoder(torch.stack(inputs)[None])[0][masked]
    return [
        patches[masked],
        model.final_proj_reconstruction(decoded),
        model.final_proj_classification(decoded),
    ]


def ssast(model: Any, patches: Tensor, masked: list[int]) -> Heads:
    """Encode all patches, with the mask token in place of the masked ones."""
    per_column = 128 // model.config.ast_kernel_size_chan
    positions = model.positions((len(patches) // per_column, per_column))[0]
    tokens = list(model.prefix_tokens[0])
    tokens += [
        model.mask_emb if n in masked else model.post_extract_proj(patch)
        for n, patch in enumerate(patches)
    ]
    encoded = model.encoder((torch.stack(tokens) + positions)[None])[0]
    encoded = encoded[model.config.prefix_tokens :][masked]
    return [
        patches[masked],
        model.final_proj_reconstruction(encoded),
        model.final_proj_classification(encoded),
    ]


def audio_mae(model: Any, patches: Tensor, masked: list[int]) -> Heads:
    """Encode CLS and the visible patches; decode them with mask tokens in the other places."""
    config = model.config
    grid = (len(patches) // 8, 8)
    visible = [n for n in range(len(patches)) if n not in masked]
    tokens = model.post_extract_proj(patches) + grid_positions(grid, config.encoder_embed_dim)
    encoded = model.encoder(torch.cat((model.prefix_tokens[0], tokens[visible]))[None])[0]
    narrow = model.post_enc_proj(encoded)
    inputs = model.decoder_mask_emb.repeat(len(patches), 1)
    inputs[visible] = narrow[1:]
    inputs = inputs + grid_positions(grid, config.decoder_embed_dim)
    if config.decoder_attention == "global":
        inputs = torch.cat((narrow[:1], inputs))
    decoded = model.decoder(inputs[None], grid)[0][-len(patches) :][masked]
    target = patches[masked]
    if config.normalise_targets:
        std = (target.var(1, keepdim=True) + 1e-6).sqrt()
        target = (target - target.mean(1, keepdim=True)) / std
    return [target, model.final_proj_reconstruction(decoded), None]


def toy(model: Any, patches: Tensor, masked: list[int]) -> Heads:
    """Encode the visible patches, predict the teacher's output of the masked ones."""
    width = model.config.encoder_embed_dim
    positions = grid_positions((len(patches) // 8, 8), width)
    visible = [n for n in range(len(patches)) if n not in masked]

    def embed(embedding: Any) -> Tensor:
        images = [embedding.second(gelu(embedding.first(p.view(1, 16, 16)))) for p in patches]
        return torch.stack(images).view(-1, width) + positions

    inputs = model.mask_emb.repeat(len(patches), 1)
    inputs[visible] = model.encoder(embed(model.post_extract_proj)[visible][None])[0]
    predicted = model.predictor((inputs + positions)[None])[0][masked]
    target = model.teacher.encoder(embed(model.teacher.post_extract_proj)[None])[0][masked]
    return [target, model.final_proj_reconstruction(predicted), None]
