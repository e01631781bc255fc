"""Frozen encoder of any system for evaluation kits: waveforms (B, L) -> embeddings.

    (B, L) -> per layer (B, T', W) -> mean over the layers (B, T', W) -> mean over time (B, W)

T' time steps of C tokens of width D each, which are concatenated: W = C D.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mae_ast.core.frontend.fbank import FRAME_SHIFT
from mae_ast.core.inference.features import BATCH_S, extract_features
from mae_ast.core.io.audio import SAMPLE_RATE
from mae_ast.hub.load import load

MODEL_VARIABLE, LAYERS_VARIABLE = "MAE_AST_MODEL", "MAE_AST_LAYERS"
DEFAULT_MODEL = "mae_ast_patch"
ALL_LAYERS = "all"


class Embedder(nn.Module):
    """Frozen encoder; gradients are not computed.

    Samples beyond [-1, 1], as resampling can give, are clipped, and clips shorter than one patch
    are zero-padded to one.

    Args:
        source: as in :func:`mae_ast.load`; default: the environment variable ``MAE_AST_MODEL``, or
            else ``mae_ast_patch``.
        layers: layers whose mean is the embedding, counted from 1, -1 being the last: a number, a
            sequence, or a string such as "9", "6,9" or "all". Default: the environment variable
            ``MAE_AST_LAYERS``, or else all.

    Raises:
        ValueError: a layer does not exist; or as :func:`mae_ast.load`.
    """

    sample_rate = SAMPLE_RATE

    def __init__(
        self, source: str | None = None, layers: int | str | Sequence[int] | None = None
    ) -> None:
        super().__init__()
        self.source = source or os.environ.get(MODEL_VARIABLE) or DEFAULT_MODEL
        self.model = load(self.source)
        config, shape = self.model.config, self.model.patch_shape
        if layers is None:
            layers = os.environ.get(LAYERS_VARIABLE) or ALL_LAYERS
        self.layers = parse_layers(layers, config.encoder_layers)
        self.width: int = shape.per_column * config.encoder_embed_dim
        self.step_ms: float = 1000 * FRAME_SHIFT * shape.time_stride / SAMPLE_RATE

    def time_steps(self, audio: Tensor) -> tuple[Tensor, Tensor]:
        """Return the embeddings of all time steps.

        Args:
            audio: (B, L) float in [-1, 1] or int16 at 16 kHz, on any device.

        Returns:
            (B, T', W) float32 on the device of ``audio``, and the centre of each time step in
            seconds, (T',) float64.
        """
        clips = self._prepared(audio)
        size = max(1, int(BATCH_S * SAMPLE_RATE) // clips.shape[1])  # bounds the memory of layers
        found, times_s = [], torch.empty(0)
        for some in clips.split(size):
            features = extract_features(self.model, some, layers=self.layers)
            found.append(torch.stack(features.time_steps).mean(0))
            times_s = features.times_s
        return torch.cat(found).to(audio.device), times_s

    def clips(self, audio: Tensor | Sequence[Tensor]) -> Tensor:
        """Return one embedding per clip: (B, W) float32.

        Args:
            audio: (B, L), or B clips (L,) of any lengths; as in :meth:`time_steps`.
        """
        clips = [self._prepared(clip) for clip in audio]
        features = extract_features(self.model, clips, layers=self.layers, pooled_only=True)
        return features.pooled.mean(1)

    def _prepared(self, audio: Tensor) -> Tensor:
        samples = audio.detach().cpu()
        samples = samples.float() / 32768 if samples.dtype == torch.int16 else samples.float()
        missing = self.model.patch_shape.min_samples - samples.shape[-1]
        return F.pad(samples.clamp(-1, 1), (0, max(0, missing)))


def parse_layers(layers: int | str | Sequence[int], count: int) -> tuple[int, ...]:
    """Parse a choice of layers; see :class:`Embedder`.

    Raises:
        ValueError: it is no choice of layers, or a layer does not exist.
    """
    if layers == ALL_LAYERS:
        return tuple(range(1, count + 1))
    try:
        numbers = layers.split(",") if isinstance(layers, str) else layers
        found = [int(n) for n in numbers] if isinstance(numbers, Sequence) else [int(numbers)]
    except ValueError:
        found = []
    if not found or any(not 1 <= layer <= count and layer != -1 for layer in found):
        raise ValueError(
            f"layers {layers!r}; must be 'all' or numbers from 1 to {count}, such as 6,9, with -1 "
            "for the last layer"
        )
    return tuple(count if layer == -1 else layer for layer in found)
