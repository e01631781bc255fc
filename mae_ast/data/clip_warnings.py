"""One-line warnings about settings that do not suit the clips of a manifest."""

from __future__ import annotations

from logging import INFO, WARNING, Logger

import numpy as np
import torch

from mae_ast.core.frontend.fbank import num_samples_of_frames
from mae_ast.core.frontend.input_stats import are_far, mean_and_std, moments
from mae_ast.core.io.audio import SAMPLE_RATE
from mae_ast.core.io.joined import JoinedManifest
from mae_ast.core.io.manifest import evenly_spaced
from mae_ast.core.models.encoder import Encoder
from mae_ast.data.audio_clips import MAX_SKIPPED, AudioClips
from mae_ast.data.bad_files import BadFile

NUM_MEASURED = 32  # clips that are measured, spread evenly over the manifest
MEASURED_S = 10.0  # seconds that are measured of each clip
MIN_USED = 0.5  # warn if training sees less than this ratio of the median clip


def statistics_warning(clips: AudioClips, encoder: Encoder) -> str | None:
    """Compare an encoder's input mean and std with those of a sample of clips.

    Args:
        clips: training split.
        encoder: encoder to be trained.

    Returns:
        The warning; ``None`` if the statistics are close, are computed per batch, or cannot be
        measured.
    """
    norm = encoder.batch_norm
    if norm.update:
        return None
    window = encoder.config.window_type
    total, count = torch.zeros(3, dtype=torch.float64), 0
    for index in _measured(clips):
        samples = clips.read_middle(int(index), round(MEASURED_S * SAMPLE_RATE))
        if not isinstance(samples, BadFile):
            total, count = total + moments(samples, window), count + 1
    try:
        mean, std = mean_and_std(total)
    except ValueError:  # unreadable or silent clips, which other messages report
        return None
    used_mean, used_std = float(norm.running_mean), float(norm.running_var) ** 0.5
    if not are_far(mean, std, used_mean, used_std):
        return None
    command = (
        f" ('mae-ast stats {clips.manifest.path} --window {window}' computes them over all clips)"
    )
    return (
        f"model.input_mean={used_mean:.4g} and model.input_std={used_std:.4g} are far from the "
        f"data: log-mel of {count} clips of {clips.manifest.path} has mean {mean:.4g} and std "
        f"{std:.4g}; set model.input_mean={mean:.4f} model.input_std={std:.4f}"
        f"{'' if isinstance(clips.manifest, JoinedManifest) else command}"
    )


def _measured(clips: AudioClips) -> np.ndarray:
    """Return the indices of the clips that are measured."""
    if clips.shard_order is not None:
        return clips.shard_order.spread(NUM_MEASURED)
    of_epoch = clips.clips_of_epoch()  # in the shares of a mixture
    return np.unique(of_epoch[evenly_spaced(len(of_epoch), NUM_MEASURED)])


def crop_warning(
    clips: AudioClips, input_frames: int | None, max_samples: int | None
) -> str | None:
    """Compare the length of the median clip with the part that one epoch of training uses.

    Args:
        clips: training split.
        input_frames: frames of 10 ms to which the network cuts its input; ``None``: no limit.
        max_samples: samples at 16 kHz to which the dataset crops clips; ``None``: no limit.

    Returns:
        The warning; ``None`` if at least half of the median clip is used.
    """
    median = float(np.median(clips.lengths))
    limits = {}
    if max_samples is not None:
        limits[f"task.max_sample_size={max_samples}"] = max_samples
    if input_frames is not None:
        limits[f"model.input_frames={input_frames}"] = num_samples_of_frames(input_frames)
    short = [key for key, limit in limits.items() if limit < MIN_USED * median]
    if not short:
        return None
    limit = min(limits.values())
    used = float(np.minimum(clips.lengths, limit).sum() / clips.lengths.sum())
    is_random = max_samples is not None and clips.random_crop
    return (
        f"{clips.manifest.path}: {'each epoch' if is_random else 'training'} uses {used:.0%} of "
        f"the audio, {'at most' if is_random else 'the first'} {limit / SAMPLE_RATE:.3g} s of each "
        f"clip (median {median / SAMPLE_RATE:.3g} s); raise {' and '.join(short)} to use more"
    )


def log_too_long(logger: Logger, clips: AudioClips, count: int, max_tokens: int) -> None:
    """Log how many clips are skipped because they exceed a batch; a warning if many are."""
    logger.log(
        WARNING if count > MAX_SKIPPED * len(clips) else INFO,
        "%s: %d of %d clips are longer than dataset.max_tokens=%d (%.3g s) and skipped; raise it, "
        "or crop clips with task.max_sample_size",
        *(clips.manifest.path, count, len(clips), max_tokens, max_tokens / SAMPLE_RATE),
    )
