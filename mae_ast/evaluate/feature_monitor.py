"""Monitor feature quality during pretraining: RankMe, and a probe on labelled clips.

The losses measure the prediction of masked patches, not downstream accuracy; collapsed features
have a low rank. Monitoring does not affect training: it draws no random numbers, keeps no
gradients, and restores the mode of the model.
"""

from __future__ import annotations

import json
import logging
import os
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tensorboardX import SummaryWriter

from mae_ast.core.inference.features import WINDOW_S
from mae_ast.core.io.audio import SAMPLE_RATE
from mae_ast.core.io.first_line import first_line
from mae_ast.core.io.manifest import Manifest, evenly_spaced
from mae_ast.core.io.plural import plural
from mae_ast.core.models.encoder import Encoder
from mae_ast.evaluate.embeddings import Embedding, embed, mean_log_mel, mean_of_layers
from mae_ast.evaluate.probe import ProbeData, rank_me, score
from mae_ast.evaluate.probe_data import match_classes, read_labelled

logger = logging.getLogger("health")

MIN_CLIPS = 20  # minimum number of training clips of a probe; its k-NN has k = 10
MAX_LAYERS = 4  # maximum number of layers that a probe compares
FLUSH_S = 2  # interval at which the writer's thread flushes TensorBoard's file
CLIP_SAMPLES = round(WINDOW_S * SAMPLE_RATE)  # longer clips are cut to their beginning


@dataclass(frozen=True)
class FeatureMonitor:
    """Fixed sets of clips on which features are evaluated.

    Args:
        clips: clips for RankMe; no labels are needed.
        probe: labelled training and test clips of the probe; ``None``: no probe.
    """

    clips: Manifest
    probe: tuple[ProbeData, ProbeData] | None

    @classmethod
    def read(cls, clips: Manifest, labelled: Path | None, num_clips: int) -> FeatureMonitor:
        """Select clips, and read labelled ones.

        Args:
            clips: manifest of the clips for RankMe.
            labelled: folder of ``labels.csv``, ``train.tsv``, ``train.lbl``, ``valid.tsv`` and
                ``valid.lbl``; ``None``: no probe.
            num_clips: maximum number of clips of each manifest, evenly spaced over its rows.

        Raises:
            FileNotFoundError: one of the files does not exist.
            ValueError: a file is invalid, or there are too few clips or classes for a probe.
        """
        if num_clips < MIN_CLIPS:
            raise ValueError(f"task.probe_clips={num_clips}; at least {MIN_CLIPS} are needed")
        manifest = clips.take(evenly_spaced(len(clips), num_clips))
        manifest.check_paths()
        manifest.check_segments()
        if labelled is None:
            return cls(manifest, None)
        train, test = (
            data.take(evenly_spaced(len(data.targets), num_clips))
            for data in match_classes(
                read_labelled(labelled / "train.tsv"), read_labelled(labelled / "valid.tsv")
            )
        )
        if len(train.targets) < MIN_CLIPS or _num_classes(train) < 2:
            raise ValueError(
                f"{train.manifest.path}: {plural(len(train.targets), 'clip')} of "
                f"{plural(_num_classes(train), 'class', 'classes')} for a probe; at least "
                f"{MIN_CLIPS} clips of 2 classes are needed"
            )
        return cls(manifest, (train, test))

    def metrics(self, model: Encoder) -> dict[str, float]:
        """Compute metrics of a model's features, averaged over time.

        Returns:
            ``rank_me`` of the last layer, and ``skipped``, the number of clips that cannot be
            decoded or are shorter than a patch. With a probe also ``linear_accuracy`` and
            ``knn_accuracy`` on the test clips, and ``layer``, the best of up to four layers on
            held-out training clips. For clips with several labels, ``mAP`` replaces ``accuracy``.

        Raises:
            ValueError: the features are not finite, or all clips were skipped.
        """
        count = model.config.encoder_layers
        min_samples = model.patch_shape.min_samples
        embedded, kept = _embed(self.clips, min_samples, mean_of_layers(model, [count]))
        found = {"rank_me": rank_me(torch.from_numpy(embedded[:, 0]))}
        skipped = len(self.clips) - len(kept)
        if self.probe is not None:
            layers = _some_layers(count)
            scores, skipped_by_probe = self._probe(
                min_samples, mean_of_layers(model, layers), layers
            )
            found |= scores
            skipped += skipped_by_probe
        return found | {"skipped": skipped}

    def log_mel_metrics(self, model: Encoder) -> dict[str, float]:
        """Compute ``linear_...`` and ``knn_...`` of the baseline, the clips' mean log-mel.

        Returns:
            The probe's metrics; empty without a probe.
        """
        if self.probe is None:
            return {}
        found, _ = self._probe(model.patch_shape.min_samples, mean_log_mel, [0])
        del found["layer"]
        return found

    def _probe(
        self, min_samples: int, embedding: Embedding, layers: Sequence[int]
    ) -> tuple[dict[str, float], int]:
        assert self.probe is not None
        features, clips = [], []
        for data in self.probe:
            embedded, kept = _embed(data.manifest, min_samples, embedding)
            features.append(embedded)
            clips.append(data.take(kept))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # classes without clips in one of the sets
            scores = score(features[0], clips[0], features[1], clips[1], layers, max_splits=1)
        measure = "accuracy" if clips[0].targets.ndim == 1 else "mAP"
        skipped = sum(len(data.targets) for data in self.probe) - sum(map(len, features))
        return {
            f"linear_{measure}": scores.linear,
            f"knn_{measure}": scores.knn,
            "layer": scores.layer,
        }, skipped


class PeriodicMonitor:
    """Log feature metrics to the console and TensorBoard every ``interval`` updates.

    Args:
        monitor: computes the metrics.
        interval: interval in updates.
        logdir: TensorBoard folder; ``None``: console only.
    """

    def __init__(self, monitor: FeatureMonitor, interval: int, logdir: str | None) -> None:
        self.monitor = monitor
        self.interval = interval
        self._logdir = logdir
        self._writer: SummaryWriter | None = None
        self._log_mel: dict[str, float] | None = None
        self._last = 0

    def after_update(self, model: Encoder, num_updates: int) -> dict[str, float]:
        """Log metrics if they are due; call after each update, in all processes.

        The first process computes them while the others wait at the next collective. Errors are
        logged as warnings and do not stop training.

        Returns:
            The metrics; empty if none are due, and in other processes.
        """
        is_due = num_updates % self.interval == 0 and num_updates != self._last
        if not is_due or (torch.distributed.is_initialized() and torch.distributed.get_rank()):
            return {}
        self._last = num_updates
        begin = time.monotonic()
        try:
            found = self.monitor.metrics(model)
            if self._log_mel is None:
                self._log_mel = self.monitor.log_mel_metrics(model)
        except (ValueError, OSError, RuntimeError) as error:
            reason = first_line(error)
            logger.warning(f"no feature metrics after update {num_updates}: {reason}")
            return {}
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
        return found


def _embed(
    manifest: Manifest, min_samples: int, embedding: Embedding
) -> tuple[np.ndarray, list[int]]:
    """Embed the beginnings of clips; skipped ones are counted by the caller, not logged."""
    return embed(manifest, embedding, min_samples, max_samples=CLIP_SAMPLES, level=logging.DEBUG)


def _some_layers(count: int) -> list[int]:
    """Return up to ``MAX_LAYERS`` evenly spaced layers, counted from 1, with the last one."""
    chosen = min(MAX_LAYERS, count)
    return [count * (n + 1) // chosen for n in range(chosen)]


def _num_classes(data: ProbeData) -> int:
    """Count the classes that occur."""
    targets = data.targets
    return len(np.unique(targets)) if targets.ndim == 1 else int(targets.any(axis=0).sum())
