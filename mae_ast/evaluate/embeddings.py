"""Embed the clips of a manifest: clips (n, L) -> mean over time (n, layers, D)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mae_ast.core.frontend.fbank import fbank
from mae_ast.core.inference.features import extract_features
from mae_ast.core.io.manifest import Manifest
from mae_ast.core.models.encoder import Encoder
from mae_ast.evaluate.read_clips import Batch, check_any

NOT_FINITE = "the model's features are not finite; its training has diverged"

Embedding = Callable[[list[Tensor]], Tensor]


def embed(
    batches: Iterator[Batch], embedding: Embedding, manifest: Manifest, path: Path | None = None
) -> tuple[np.ndarray, list[int]]:
    """Embed clips, skipping unusable ones.

    Args:
        batches: clips of ``manifest``, from :func:`~mae_ast.evaluate.read_clips.clip_batches`.
        embedding: function of n clips that returns (n, layers, D).
        manifest: manifest of the clips.
        path: ``.npy`` file in which the embeddings are memory-mapped; ``None``: in memory.

    Returns:
        The embeddings of the usable clips, (R, layers, D) float32, and their rows.

    Raises:
        AudioError: no clip can be used.
        ValueError: embeddings are not finite.
    """
    used: list[int] = []
    found = np.empty(0, np.float32)
    for batch in batches:
        if not batch.clips:
            continue
        values = embedding(list(batch.clips.values()))
        if not bool(values.isfinite().all()):
            raise ValueError(NOT_FINITE)
        if not used:
            shape = (len(manifest), *values.shape[1:])
            found = np.empty(shape, np.float32) if path is None else _mapped(path, shape)
        found[len(used) : len(used) + len(values)] = values.numpy()
        used += batch.clips
    check_any(len(used), manifest)
    return found[: len(used)], used


def mean_of_layers(model: Encoder, layers: Sequence[int]) -> Embedding:
    """Return the embedding by the mean over time of layers, counted from 1: (n, layers, C D)."""

    def embedding(clips: list[Tensor]) -> Tensor:
        return extract_features(model, clips, layers=layers, pooled_only=True).pooled

    return embedding


def mean_log_mel(clips: list[Tensor]) -> Tensor:
    """Return the mean log-mel spectrum of each clip, (n, 1, 128)."""
    return torch.stack([fbank(clip[None])[0].mean(0) for clip in clips])[:, None]


def _mapped(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    return np.lib.format.open_memmap(path, "w+", np.float32, shape)
