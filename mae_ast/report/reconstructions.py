"""Reconstructions of validation clips by pretrained models, as spectrograms and sounds.

Spectrograms are log-mel (T, 128) before normalisation, in 8 bits, with the scale of the original.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mae_ast.core.frontend.collate import Batch, Clip, Collater
from mae_ast.core.inference.reconstruct import reconstruct
from mae_ast.core.io.audio import SAMPLE_RATE, AudioError
from mae_ast.core.io.manifest import evenly_spaced
from mae_ast.evaluate.read_clips import read_or_skip
from mae_ast.hub.load import load_masked
from mae_ast.report.collect import Run
from mae_ast.report.inversion import to_waveforms
from mae_ast.report.sounds import Sounds, as_float, gain_of

MASKED, MAX_LEVEL = 255, 254  # 8-bit values of a spectrogram
SCALE_QUANTILES = (0.01, 0.995)
WHAT = "reconstructions"  # in notes

Shown = dict[str, Any]


@dataclass(frozen=True)
class Excerpts:
    """Choice of excerpts.

    Args:
        clips: number of validation clips.
        seconds: maximum length of each.
    """

    clips: int
    seconds: float


def reconstructions(
    runs: Sequence[Run], excerpts: Excerpts, device: str, sounds: Sounds
) -> list[Shown]:
    """Reconstruct validation clips; runs with the same clips share an entry.

    Returns:
        For each clip ``name``, ``original`` (spectrogram, ``sound``, ``inverted`` sound) and
        ``runs``: number of the run, ``visible`` and ``rebuilt`` (spectrogram and sound), ``masked``
        fraction, ``mse`` there, and ``rescaled`` as in the reconstruction. What is missing is
        noted in the runs.
    """
    found: dict[tuple[str, int], Shown] = {}
    for number, run in enumerate(runs):
        if run.checkpoint is None or run.is_finetuned or not excerpts.clips:
            continue
        try:
            _add_run(found, number, run, excerpts, device, sounds)
        except (ValueError, OSError) as error:
            run.note(WHAT, error)
    return list(found.values())


def _add_run(
    found: dict[tuple[str, int], Shown],
    number: int,
    run: Run,
    excerpts: Excerpts,
    device: str,
    sounds: Sounds,
) -> None:
    manifest = run.load_manifest("valid_subset", "valid")
    assert run.checkpoint is not None
    model: Any = load_masked(run.checkpoint).to(device)
    seed = int(run.setting("task", "seed") or 0)
    collate = Collater(model.config, str(model.mask_type), random_crop=False)
    used = 0
    for row in evenly_spaced(len(manifest), excerpts.clips).tolist():
        max_samples = round(excerpts.seconds * SAMPLE_RATE)
        samples = read_or_skip(manifest, row, model.patch_shape.min_samples, max_samples)
        if samples is None:
            continue
        used += 1
        key = (str(manifest.segment(row)), len(samples))
        clip = Clip.of(row, samples, seed, epoch=0)  # masked as in the run's validation
        _add_clip(found, key, number, model, collate([clip]), sounds)
    if not used:
        raise AudioError(f"{manifest.path}: none of the clips can be used")


def _add_clip(
    found: dict[tuple[str, int], Shown],
    key: tuple[str, int],
    number: int,
    model: Any,
    batch: Batch,
    sounds: Sounds,
) -> None:
    device, samples = model.batch_norm.running_mean.device, batch.source[0]
    made = reconstruct(model, batch.source.to(device), batch.mask.to(device))
    masked = made.visible.isnan().float().mean().item()
    error = (made.rebuilt - made.original).square().mean().item()
    parts = (made.original, made.visible, made.rebuilt)
    log_mel = torch.cat([model.batch_norm.invert(part) for part in parts]).cpu()
    waves = to_waveforms(log_mel, model.config.window_type)
    gain = gain_of(samples)
    scale = np.quantile(log_mel[0].numpy(), SCALE_QUANTILES).tolist()
    original, visible, rebuilt = (as_pixels(each, *scale) for each in log_mel)
    if key not in found:
        found[key] = {
            "name": Path(key[0]).name,
            "seconds": len(samples) / SAMPLE_RATE,
            "original": original,
            "sound": sounds.add(as_float(samples) * gain),
            "inverted": sounds.add(waves[0] * gain),
            "runs": [],
        }
    found[key]["runs"].append(
        {
            "run": number,
            "visible": {**visible, "sound": sounds.add(waves[1] * gain)},
            "rebuilt": {**rebuilt, "sound": sounds.add(waves[2] * gain)},
            "masked": masked,
            "rescaled": made.rescaled,
            "mse": error / masked if masked else None,
        }
    )


def as_pixels(log_mel: Tensor, low: float, high: float) -> Shown:
    """Return a spectrogram in 8 bits: ``frames``, and ``pixels`` (T, 128) in base64.

    Args:
        log_mel: (T, 128); NaN becomes ``MASKED``.
        low, high: values of 0 and of ``MAX_LEVEL``; what lies beyond is clipped.
    """
    levels = (log_mel - low) / max(high - low, 1e-6) * MAX_LEVEL
    rounded = levels.clamp(0, MAX_LEVEL).round().nan_to_num(nan=MASKED).to(torch.uint8)
    return {
        "frames": len(log_mel),
        "pixels": base64.b64encode(rounded.contiguous().numpy().tobytes()).decode(),
    }
