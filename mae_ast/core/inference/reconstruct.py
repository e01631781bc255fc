"""Reconstruct masked spectrograms: original, visible patches and reconstruction, (B, T', 128)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mae_ast.core.frontend.masking import MaskIds
from mae_ast.core.frontend.patches import unpatchify
from mae_ast.core.models.encoder import MaskedEncoder


@dataclass(frozen=True)
class Reconstruction:
    """Normalised log-mel spectrograms, T' frames: those covered by patches.

    Args:
        original: (B, T', 128).
        visible: (B, T', 128), NaN at masked patches.
        rebuilt: (B, T', 128), with the model's prediction at masked patches.
        rescaled: the model predicts normalised patches, which got the original's mean and std.
    """

    original: Tensor
    visible: Tensor
    rebuilt: Tensor
    rescaled: bool = False


@torch.no_grad()
def reconstruct(model: MaskedEncoder, source: Tensor, mask: MaskIds) -> Reconstruction:
    """Reconstruct the masked patches of clips of equal length.

    Args:
        model: in eval mode.
        source: (B, L) int16 or float waveforms at 16 kHz, or (B, T, 128) log-mel.
        mask: ids of the visible and masked patches.

    Raises:
        ValueError: the prediction is not finite, or is no prediction of patches.
    """
    patches = model.patches(source)[:, : mask.num_patches]  # without padding to input_frames
    out = model(source, None, mask)
    prediction = out.rebuilt()
    if prediction.shape[2] != patches.shape[2]:
        raise ValueError(
            f"the model predicts {prediction.shape[2]} values per masked patch, not its "
            f"{patches.shape[2]} log-mel values; it cannot reconstruct"
        )
    if not bool(prediction.isfinite().all()):
        raise ValueError("the model's prediction is not finite; its training has diverged")
    index = mask.masked_ids.unsqueeze(2).expand(-1, -1, patches.shape[2])

    def spectrogram(values: Tensor) -> Tensor:
        return unpatchify(values, model.patch_shape)

    return Reconstruction(
        spectrogram(patches),
        spectrogram(patches.scatter(1, index, float("nan"))),
        spectrogram(patches.scatter(1, index, prediction)),
        out.scale is not None,
    )
