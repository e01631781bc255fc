"""Rebuild what was hidden: original, visible part and answer, (B, T', 128) each."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mae_ast.core.frontend.masking import MaskIds
from mae_ast.core.frontend.patches import unpatchify
from mae_ast.core.models.encoder import MaskedEncoder


@dataclass(frozen=True)
class Reconstruction:
    """Normalised log-mel spectrograms, T' frames without those that fill no patch.

    Args:
        original: (B, T', 128).
        visible: the same, NaN where hidden.
        rebuilt: the visible patches, and the model's prediction where hidden.
    """

    original: Tensor
    visible: Tensor
    rebuilt: Tensor


@torch.no_grad()
def reconstruct(model: MaskedEncoder, source: Tensor, mask: MaskIds) -> Reconstruction:
    """Run a model on clips of equal length.

    Args:
        model: in eval mode.
        source: (B, L) int16 or float waveforms at 16 kHz, or (B, T, 128) log-mel.
        mask: what to hide.

    Raises:
        ValueError: the prediction is not finite.
    """
    num_own = mask.visible_ids.shape[1] + mask.masked_ids.shape[1]
    patches = model.patches(source, None)[:, :num_own]  # not what input_frames fills up
    prediction = model(source, None, mask.visible_ids, mask.masked_ids).rebuilt()
    if not bool(prediction.isfinite().all()):
        raise ValueError("the model's prediction is not finite; its training has diverged")
    where = mask.masked_ids.unsqueeze(2).expand(-1, -1, patches.shape[2])

    def picture(values: Tensor) -> Tensor:
        return unpatchify(values, model.patch_shape)

    return Reconstruction(
        picture(patches),
        picture(patches.scatter(1, where, float("nan"))),
        picture(patches.scatter(1, where, prediction)),
    )
