"""Score masked prediction on a split, with the same clips and masks for every model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from mae_ast.core.frontend.collate import Batch, Clip, Collater
from mae_ast.core.io.manifest import Manifest
from mae_ast.core.models.encoder import MaskedEncoder
from mae_ast.core.models.losses import info_nce_loss, reconstruction_loss
from mae_ast.evaluate.read_clips import read_or_skip

BATCH_SIZE = 64
MAX_SAMPLES = 160_000  # longer clips are cut to their beginning
SEED = 0


@dataclass(frozen=True)
class MaskedScores:
    """Scores over all masked patches of a split.

    Args:
        relative_mse: mean squared error of the reconstruction divided by the variance of the
            masked values, which does not depend on how the input is normalised; 1 is the error of
            the best constant.
        accuracy: InfoNCE accuracy, the fraction of masked patches that the model identifies among
            all masked patches of their clip; ``None`` for systems without this loss.
        num_masked: number of masked patches.
    """

    relative_mse: float
    accuracy: float | None
    num_masked: int


@torch.no_grad()
def masked_scores(
    model: MaskedEncoder, manifest: Manifest, mask_type: str, ratio: float
) -> MaskedScores:
    """Score a model; masks depend on the clip only, not on the settings it was trained with.

    Args:
        model: in eval mode, on any device. Both heads are computed, trained or not.
        manifest: manifest of the clips; unusable ones are skipped.
        mask_type, ratio: of the masks, as in :class:`mae_ast.core.frontend.collate.Collater`.

    Raises:
        ValueError: no clip can be used.
    """
    device = model.batch_norm.running_mean.device
    totals = torch.zeros(6, dtype=torch.float64)
    has_accuracy = False
    for batch in _batches(model, manifest, mask_type, ratio):
        mask = batch.mask.to(device)
        out = model(batch.source.to(device), None, mask)
        target = out.target.double()
        prediction = out.rebuilt()
        if out.scale is not None and out.offset is not None:
            target = target * out.scale + out.offset
        has_accuracy = out.classification is not None
        correct = info_nce_loss(out.classification, out.target).num_correct if has_accuracy else 0
        totals += torch.tensor(
            [
                float(reconstruction_loss(prediction, target.float())),
                float(correct),
                float(target[..., 0].numel()),
                float(target.sum()),
                float(target.square().sum()),
                float(target.numel()),
            ],
            dtype=torch.float64,
        )
    squared, correct, masked, total, squares, count = totals.tolist()
    if not masked:
        raise ValueError(f"{manifest.path}: no clip can be used")
    variance = squares / count - (total / count) ** 2
    accuracy = correct / masked if has_accuracy else None
    return MaskedScores(squared / masked / variance, accuracy, int(masked))


def _batches(
    model: MaskedEncoder, manifest: Manifest, mask_type: str, ratio: float
) -> Iterator[Batch]:
    """Yield all clips, in batches of similar lengths, cropped to the shortest of the batch."""
    config = dataclasses.replace(model.config, random_mask_prob=ratio)
    collate = Collater(config, mask_type, random_crop=False)
    shortest = model.patch_shape.min_samples
    order = np.argsort(manifest.num_samples, kind="stable")
    for first in range(0, len(order), BATCH_SIZE):
        rows = order[first : first + BATCH_SIZE].tolist()
        read = {row: read_or_skip(manifest, row, shortest, MAX_SAMPLES) for row in rows}
        clips = [
            Clip.of(row, clip, SEED, epoch=0) for row, clip in read.items() if clip is not None
        ]
        if clips:
            yield collate(clips)
