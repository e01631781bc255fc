"""How good a model's features are while it is pretrained: RankMe, and a probe on labelled clips.

Losses say how well hidden patches are guessed, not what the features are worth; and features that
collapse show in their rank. Nothing of training is touched: no random number is drawn, no gradient
kept, and the model comes back in the mode it was in.
"""

from __future__ import annotations

import json
import logging
import os
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tensorboardX import SummaryWriter
from torch import Tensor

from mae_ast.core.frontend.fbank import fbank
from mae_ast.core.inference.features import WINDOW_S, extract_features
from mae_ast.core.io.audio import SAMPLE_RATE, AudioError, read_audio
from mae_ast.core.io.manifest import Manifest
from mae_ast.core.io.plural import plural
from mae_ast.core.models.encoder import Encoder
from mae_ast.evaluate.probe import ProbeData, rank_me, score
from mae_ast.evaluate.probe_data import match_classes, read_labelled

logger = logging.getLogger("health")

MIN_CLIPS = 20  # of those that a probe is fitted to; its nearest neighbours are 10
MAX_LAYERS = 4  # that a probe tries
BATCH_CLIPS = 32
FLUSH_S = 2  # until TensorBoard's file has what another thread writes to it
READERS = 4  # files decoded at a time
CLIP_SAMPLES = round(WINDOW_S * SAMPLE_RATE)  # of longer clips the beginning is heard

Embed = Callable[[list[Tensor]], Tensor]


@dataclass(frozen=True)
class FeatureMonitor:
    """What is looked at, always the same.

    Args:
        clips: whose embeddings RankMe is of; no labels are needed.
        probe: clips with labels, to fit a probe to and to test it on; ``None``: no probe.
    """

    clips: Manifest
    probe: tuple[ProbeData, ProbeData] | None

    @classmethod
    def read(cls, clips: Path, labelled: Path | None, num_clips: int) -> FeatureMonitor:
        """Read manifests and labels.

        Args:
            clips: a manifest.
            labelled: folder of ``labels.csv``, ``train.tsv``, ``train.lbl``, ``valid.tsv`` and
                ``valid.lbl``; ``None``: no probe.
            num_clips: at most so many of each manifest, spread evenly over its rows.

        Raises:
            FileNotFoundError: one of the files is not there.
            ValueError: one cannot be used, or there are too few clips or classes for a probe.
        """
        if num_clips < MIN_CLIPS:
            raise ValueError(f"task.probe_clips={num_clips}; at least {MIN_CLIPS}")
        manifest = Manifest.read(clips)
        manifest = manifest.take(_spread(len(manifest), num_clips))
        manifest.check_paths()
        if labelled is None:
            return cls(manifest, None)
        train, test = (
            data.take(_spread(len(data.targets), num_clips))
            for data in match_classes(
                read_labelled(labelled / "train.tsv"), read_labelled(labelled / "valid.tsv")
            )
        )
        if len(train.targets) < MIN_CLIPS or _num_classes(train) < 2:
            raise ValueError(
                f"{train.manifest.path}: {plural(len(train.targets), 'clip')} of "
                f"{plural(_num_classes(train), 'class', 'classes')} for a probe; at least "
                f"{MIN_CLIPS} of 2 are needed"
            )
        return cls(manifest, (train, test))

    def metrics(self, model: Encoder) -> dict[str, float]:
        """Figures of a model's features, means over time.

        Returns:
            ``rank_me`` of the last layer; ``left_out``, clips that cannot be decoded or are
            shorter than a patch; of a probe ``linear_accuracy`` and ``knn_accuracy`` on the test
            clips, and ``layer``, the best of up to four on a part of the training clips. Where
            clips have several labels it is ``mAP`` instead of ``accuracy``.

        Raises:
            ValueError: the features are not finite, or no clip is left.
        """
        count = model.config.encoder_layers
        shortest = model.patch_shape.min_samples
        embedded, kept = _embed(self.clips, shortest, _layers_of(model, [count]))
        found = {"rank_me": rank_me(embedded[:, 0])}
        left_out = len(self.clips) - len(kept)
        if self.probe is not None:
            layers = _some_layers(count)
            scores, left_out_here = self._probe(shortest, _layers_of(model, layers), layers)
            found |= scores
            left_out += left_out_here
        return found | {"left_out": left_out}

    def log_mel_metrics(self, model: Encoder) -> dict[str, float]:
        """``linear_...`` and ``knn_...`` of the baseline, the same clips' mean log-mel.

        Empty without a probe.
        """
        if self.probe is None:
            return {}
        found, _ = self._probe(model.patch_shape.min_samples, _mean_log_mel, [0])
        del found["layer"]
        return found

    def _probe(
        self, shortest: int, embed: Embed, layers: Sequence[int]
    ) -> tuple[dict[str, float], int]:
        assert self.probe is not None
        features, clips = [], []
        for data in self.probe:
            embedded, kept = _embed(data.manifest, shortest, embed)
            features.append(embedded.numpy())
            clips.append(data.take(kept))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of classes that no clip of a part has
            scores = score(features[0], clips[0], features[1], clips[1], layers)
        measure = "accuracy" if clips[0].targets.ndim == 1 else "mAP"
        left_out = sum(len(data.targets) for data in self.probe) - sum(map(len, features))
        return {
            f"linear_{measure}": scores.linear,
            f"knn_{measure}": scores.neighbours,
            "layer": scores.layer,
        }, left_out


class PeriodicMonitor:
    """Every so many updates, figures into log and TensorBoard.

    Args:
        check: what is looked at.
        interval: in updates.
        logdir: TensorBoard's folder; ``None``: the log only.
    """

    def __init__(self, check: FeatureMonitor, interval: int, logdir: str | None) -> None:
        self.check = check
        self.interval = interval
        self._logdir = logdir
        self._writer: SummaryWriter | None = None
        self._log_mel: dict[str, float] | None = None
        self._last = 0

    def after_update(self, model: Encoder, num_updates: int) -> None:
        """To be called after each; the first process works while the others wait for it.

        What goes wrong here ends no training; it is a warning in the log.
        """
        is_due = num_updates % self.interval == 0 and num_updates != self._last
        if not is_due or (torch.distributed.is_initialized() and torch.distributed.get_rank()):
            return
        self._last = num_updates
        begin = time.monotonic()
        try:
            found = self.check.metrics(model)
            if self._log_mel is None:
                self._log_mel = self.check.log_mel_metrics(model)
        except (ValueError, OSError, RuntimeError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            logger.warning(f"no figures after update {num_updates}: {reason}")
            return
        found |= {f"log_mel_{name}": value for name, value in self._log_mel.items()}
        found["seconds"] = time.monotonic() - begin
        rounded = {name: round(value, 4) for name, value in found.items()}
        logger.info(json.dumps({"num_updates": num_updates, **rounded}))
        if self._logdir is not None:
            if self._writer is None:
                folder = os.path.join(self._logdir, "health")
                self._writer = SummaryWriter(folder, flush_secs=FLUSH_S)
            for name, value in found.items():
                self._writer.add_scalar(name, value, num_updates)


def _embed(manifest: Manifest, shortest: int, embed: Embed) -> tuple[Tensor, list[int]]:
    """Embeddings (kept, layers, D) float32 of the clips that can be used, and their rows."""
    parts: list[Tensor] = []
    kept: list[int] = []
    with ThreadPoolExecutor(READERS) as pool:
        for start in range(0, len(manifest), BATCH_CLIPS):
            rows = range(start, min(start + BATCH_CLIPS, len(manifest)))
            clips = pool.map(_read, (manifest.audio_path(row) for row in rows))
            read = zip(rows, clips, strict=True)
            usable = {row: clip for row, clip in read if len(clip) >= shortest}
            if usable:
                parts.append(embed(list(usable.values())))
                kept += usable
    if not parts:
        raise ValueError(f"{manifest.path}: none of its clips can be used")
    embedded = torch.cat(parts)
    if not bool(torch.isfinite(embedded).all()):
        raise ValueError("the features are not finite (NaN or infinity)")
    return embedded, kept


def _read(path: str) -> Tensor:
    """The beginning of a file as (L,) int16; nothing where it cannot be decoded."""
    try:
        return read_audio(path, 0, CLIP_SAMPLES)
    except (FileNotFoundError, AudioError):
        return torch.zeros(0, dtype=torch.int16)


def _layers_of(model: Encoder, layers: Sequence[int]) -> Embed:
    def embed(clips: list[Tensor]) -> Tensor:
        return extract_features(model, clips, layers=layers, pooled_only=True).pooled

    return embed


def _mean_log_mel(clips: list[Tensor]) -> Tensor:
    return torch.stack([fbank(clip[None])[0].mean(0) for clip in clips])[:, None]


def _some_layers(count: int) -> list[int]:
    """Up to four of the layers, counted from 1, spread evenly; the last is one."""
    wanted = min(MAX_LAYERS, count)
    return [count * (n + 1) // wanted for n in range(wanted)]


def _spread(count: int, most: int) -> np.ndarray:
    """Row numbers, at most so many, spread evenly."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))


def _num_classes(data: ProbeData) -> int:
    """Classes that occur."""
    targets = data.targets
    return len(np.unique(targets)) if targets.ndim == 1 else int(targets.any(axis=0).sum())
