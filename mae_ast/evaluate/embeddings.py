"""Embed the clips of a manifest: clips (n, L) -> mean over time (n, layers, D)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mae_ast.core.frontend.fbank import fbank
from mae_ast.core.inference.features import extract_features
from mae_ast.core.io.manifest import Manifest
from mae_ast.core.io.read_ahead import Progress
from mae_ast.core.models.encoder import Encoder
from mae_ast.evaluate.read_clips import Batch, check_any, for_each_batch

NOT_FINITE = "the model's features are not finite; its training has diverged"

Embedding = Callable[[list[Tensor]], Tensor]


def embed(
    manifest: Manifest,
    embedding: Embedding,
    min_samples: int,
    path: Path | None = None,
    *,
    max_samples: int | None = None,
    level: int = logging.WARNING,
    progress: Progress | None = None,
) -> tuple[np.ndarray, list[int]]:
    """Embed clips, skipping unusable ones.

    Args:
        manifest: manifest of the clips.
        embedding: function of n clips that returns (n, layers, D).
        min_samples: minimum length of a clip at 16 kHz.
        path: ``.npy`` file in which the embeddings are memory-mapped; ``None``: in memory.
        max_samples, level, progress: as in
            :func:`~mae_ast.evaluate.read_clips.for_each_batch`.

    Returns:
        The embeddings of the usable clips, (R, layers, D) float32, and their rows.

    Raises:
        AudioError: no clip can be used.
        ValueError: embeddings are not finite.
    """
    used: list[int] = []
    found = np.empty(0, np.float32)

    def add(batch: Batch) -> None:
        nonlocal found
        if not batch.clips:
            return
        values = embedding(list(batch.clips.values()))
        if not bool(values.isfinite().all()):
            raise ValueError(NOT_FINITE)
        if not used:
            shape = (len(manifest), *values.shape[1:])
            found = np.empty(shape, np.float32) if path is None else _mapped(path, shape)
        found[len(used) : len(used) + len(values)] = values.numpy()
        used.extend(batch.clips)

    for_each_batch(
        manifest, min_samples, add, max_samples=max_samples, level=level, progress=progress
    )
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
