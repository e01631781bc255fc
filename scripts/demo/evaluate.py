"""Evaluate reconstruction on held-out voices, against a simple baseline."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from mae_ast.core.frontend.collate import Batch, Clip, Collater
from mae_ast.core.frontend.patches import patchify, unpatchify
from mae_ast.core.io.manifest import Manifest
from mae_ast.core.io.segment import read_segment
from mae_ast.core.models.losses import info_nce_loss, reconstruction_loss
from mae_ast.hub.load import PretrainedMaeAst

BATCH_SIZE = 64
CLIPS_FOR_MEANS = 1024


@dataclass(frozen=True)
class Scores:
    """Metrics over all hidden patches of a split.

    Args:
        mse: mean squared error of the model, on normalised log-mel.
        baseline_mse: the same for each mel bin's mean over training data, shifted by the clip's
            offset.
        accuracy: InfoNCE accuracy, the fraction of hidden patches that the model identifies among
            all hidden patches of the clip.
        num_candidates: mean number of hidden patches per clip; chance accuracy is its inverse.
    """

    mse: float
    baseline_mse: float
    accuracy: float
    num_candidates: float


def batches(manifest: Manifest, model: PretrainedMaeAst, seed: int = 0) -> Iterator[Batch]:
    """Yield all clips of a split with masks as in training, fixed by the seed."""
    collate = Collater(model.config, model.mask_type, random_crop=False)
    for first in range(0, len(manifest), BATCH_SIZE):
        rows = range(first, min(first + BATCH_SIZE, len(manifest)))
        yield collate(
            [Clip.of(row, read_segment(manifest.segment(row)), seed, epoch=0) for row in rows]
        )


@torch.no_grad()
def evaluate(model: PretrainedMaeAst, train: Manifest, valid: Manifest) -> Scores:
    """Score a model and the baseline on the same hidden patches."""
    sample = islice(batches(train, model), CLIPS_FOR_MEANS // BATCH_SIZE)
    bin_means = torch.cat([model.spectrogram(b.source).mean(1) for b in sample]).mean(0)

    totals = torch.zeros(5, dtype=torch.float64)
    for batch in batches(valid, model):
        ids = batch.mask
        out = model(batch.source, None, ids)
        patches = model.patches(batch.source, None)
        baseline = _baseline(patches, ids.visible_ids, bin_means, model)
        hidden = ids.masked_ids.unsqueeze(2).expand(-1, -1, patches.shape[2])
        totals += torch.stack(
            [
                reconstruction_loss(out.reconstruction, out.target),
                reconstruction_loss(baseline.gather(1, hidden), out.target),
                info_nce_loss(out.classification, out.target).num_correct,
                torch.tensor(float(batch.num_masked)),
                torch.tensor(float(len(batch.ids))),
            ]
        ).double()
    mse, baseline_mse, correct, masked, clips = totals.tolist()
    return Scores(mse / masked, baseline_mse / masked, correct / masked, masked / clips)


def _baseline(
    patches: Tensor, visible_ids: Tensor, bin_means: Tensor, model: PretrainedMaeAst
) -> Tensor:
    """Predict each mel bin's mean plus the mean offset of the clip's visible patches, (B, N, P)."""
    shape = model.config.patch_shape
    spectrogram = unpatchify(patches, shape)
    means = patchify(bin_means.expand_as(spectrogram), shape)
    visible = visible_ids.unsqueeze(2).expand(-1, -1, patches.shape[2])
    offset = (patches - means).gather(1, visible).mean(dim=(1, 2), keepdim=True)
    return means + offset
