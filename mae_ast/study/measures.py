"""Measures of a trained cell: time, memory, masked prediction, and frozen features."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from mae_ast.console import bar
from mae_ast.core.checkpoints.reader import RUN_FILE, read_state
from mae_ast.core.models.encoder import MaskedEncoder
from mae_ast.evaluate.embeddings import embed, mean_log_mel, mean_of_layers
from mae_ast.evaluate.masked_prediction import masked_scores
from mae_ast.evaluate.probe import ProbeData, ProbeScore, rank_me, score, with_random_weights
from mae_ast.hub.load import Pretrained, load
from mae_ast.study.data import StudyData
from mae_ast.trainer.metrics_log import END, read_metrics

MEASURES_VERSION = 2  # increased when a measure changes, so that old ones are measured again
MASK_TYPE, RATIO = "random_mask", 0.75  # of the masks that all cells are scored with
MAX_CLIPS = 2000  # of each set that features are scored on
WARM_UP = 0.2  # fraction of the updates whose times are omitted


def measure_run(run: Path, data: StudyData) -> dict[str, float]:
    """Measure a trained cell.

    All cells are scored on the same clips, with the same masks (for equal patches): the masked
    prediction of ``valid``, and the mean over time of each layer's features. A held-out part of the
    training groups selects the layer. Measures that do not exist are absent, such as the error of a
    model that was trained without the reconstruction loss.

    Args:
        run: folder of the run.
        data: data of the study.

    Raises:
        ValueError: features are not finite, or a file is invalid.
        FileNotFoundError: the run has no checkpoint.
    """
    found = _costs(read_metrics(run))
    cfg = read_state(run / RUN_FILE)["cfg"]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load(run / RUN_FILE).to(device)
    valid = data.valid(MAX_CLIPS)
    if isinstance(model, MaskedEncoder):
        scores = masked_scores(model, valid, MASK_TYPE, RATIO)
        if cfg["criterion"]["reconstruction_weight"]:
            found["relative_mse"] = scores.relative_mse
        if cfg["criterion"]["classification_weight"] and scores.accuracy is not None:
            found["info_nce_accuracy"] = scores.accuracy
    last = mean_of_layers(model, [model.config.encoder_layers])
    embedded, _ = embed(valid, last, model.patch_shape.min_samples)
    found["rank_me"] = rank_me(torch.from_numpy(embedded[:, 0]))
    for probe in data.probes:
        sets = probe.read(MAX_CLIPS)
        layers = range(1, model.config.encoder_layers + 1)
        own = _score(model, sets, layers, f"{run.name}, {probe.name}")
        found |= {
            f"{probe.name}_linear": own.linear,
            f"{probe.name}_knn": own.knn,
            f"{probe.name}_layer": own.layer,
        }
    return found


def measure_baselines(run: Path, data: StudyData) -> dict[str, float]:
    """Score the network of a run with random weights, and mean log-mel, on each probe.

    Raises:
        ValueError, FileNotFoundError: as :func:`measure_run`.
    """
    model = with_random_weights(load(run / RUN_FILE))
    layers = range(1, model.config.encoder_layers + 1)
    found: dict[str, float] = {}
    for probe in data.probes:
        sets = probe.read(MAX_CLIPS)
        random = _score(model, sets, layers, f"random weights, {probe.name}")
        log_mel = _score(model, sets, None, f"mean log-mel, {probe.name}")
        found |= {
            f"{probe.name}_random_linear": random.linear,
            f"{probe.name}_random_knn": random.knn,
            f"{probe.name}_log_mel_linear": log_mel.linear,
            f"{probe.name}_log_mel_knn": log_mel.knn,
        }
    return found


def _score(
    model: Pretrained,
    sets: tuple[ProbeData, ProbeData],
    layers: Sequence[int] | None,
    title: str,
) -> ProbeScore:
    """Score features of layers; ``None``: mean log-mel."""
    embedding = mean_log_mel if layers is None else mean_of_layers(model, layers)
    features, kept = [], []
    for data in sets:
        embedded, used = embed(
            data.manifest, embedding, model.patch_shape.min_samples, progress=bar(title, "clip")
        )
        features.append(embedded)
        kept.append(data.take(used))
    return score(features[0], kept[0], features[1], kept[1], list(layers or [0]))


def _costs(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the median time of an update, and the memory, from the lines of a run."""
    logged = [
        (datetime.fromisoformat(line["timestamp"]), line["num_updates"])
        for line in lines
        if line["kind"] == "train_inner"
    ]
    first = WARM_UP * max((updates for _, updates in logged), default=0)
    times = [
        (end - begin).total_seconds() / (after - before)
        for (begin, before), (end, after) in pairwise(logged)
        if before >= first and after > before
    ]
    found = {"update_s": statistics.median(times)} if times else {}
    ends = [line for line in lines if line["kind"] == END]
    if ends:
        found["peak_gib"] = max(line["peak_gib"] for line in ends)
        found["memory_gib"] = max(line["peak_gib"] - line["peak_gib_at_begin"] for line in ends)
    return found


def updates_to(run: Path, accuracy: float) -> dict[str, float]:
    """Find the first update at which the probe during training reaches an accuracy.

    Returns:
        ``updates_to``; empty if the run does not reach it.
    """
    for line in read_metrics(run):
        if line["kind"] == "health" and (line.get("linear_accuracy") or 0) >= accuracy:
            return {"updates_to": line["num_updates"]}
    return {}
