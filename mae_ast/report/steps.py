"""Time of a training step: as recorded, and split into its parts by a few measured steps.

A run records its updates per second, but not their parts. These are measured with the run's model,
settings and training clips on the machine that makes the page: one warm-up step, then up to
``MAX_STEPS``. Reading and decoding are measured in one process; training does so in its workers,
beside the step.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mae_ast.bench.machine import hardware
from mae_ast.bench.work import count_activations, peak_bytes, pretraining_loss
from mae_ast.core.frontend.collate import Batch, Clip, Collater
from mae_ast.core.io.audio import SAMPLE_RATE, AudioError
from mae_ast.core.io.manifest import Manifest, evenly_spaced
from mae_ast.core.nn.precision import uses_bfloat16
from mae_ast.evaluate.read_clips import read_or_skip
from mae_ast.finetune.checkpoint import load_finetuned
from mae_ast.hub.load import load_masked
from mae_ast.report.collect import Run
from mae_ast.report.curves import TRAINING

PARTS = ("data", "forward", "backward", "optimizer")
MAX_STEPS, LIMIT_S = 5, 8.0
MAX_BATCH_S = {"cpu": 48.0, "cuda": 640.0}  # seconds of audio in a measured batch
DEFAULT_BATCH = 8  # clips, where the settings do not limit a batch
WHAT = "parts of a step"  # in notes

Times = dict[str, Any]


def step_times(runs: Sequence[Run], device: str, num_measured: int) -> list[Times]:
    """Return the time of an update of each run, as recorded, and its parts.

    Args:
        runs: the runs; what is missing is noted in them.
        device: device to measure on.
        num_measured: number of runs, from the first one, to measure the parts of.

    Returns:
        For each run ``run``, its number; ``update_s`` and ``clips_per_s``, medians of its training
        lines, and ``process_gib``, its peak memory; and if measured the ``parts`` in seconds,
        ``clips`` and ``seconds`` of the batch, ``batch``, the run's number of clips,
        ``parameters``, ``precision``, ``counted_gib`` (not for classifiers), ``peak_gib`` (on a
        GPU) and ``hardware``.
    """
    found = []
    for number, run in enumerate(runs):
        times: Times = {"run": number, **recorded(run)}
        if number < num_measured and run.checkpoint is not None:
            try:
                times |= _measure(run, torch.device(device))
            except (ValueError, OSError, torch.OutOfMemoryError) as error:
                run.note(WHAT, error)
        if len(times) > 1:
            found.append(times)
    return found


def recorded(run: Run) -> Times:
    """Return medians over the second half of a run's training lines, and its peak memory."""
    lines = [line for line in run.lines if line["kind"] == TRAINING]
    lines = lines[len(lines) // 2 :]
    rates = {key: [line[key] for line in lines if line.get(key)] for key in ("ups", "clips_per_s")}
    found = {}
    if rates["ups"]:
        found["update_s"] = 1 / median(rates["ups"])
    if rates["clips_per_s"]:
        found["clips_per_s"] = median(rates["clips_per_s"])
    if peaks := [line["peak_gib"] for line in run.ends if line.get("peak_gib")]:
        found["process_gib"] = max(peaks)
    return found


@dataclass(frozen=True)
class _Training:
    """A run's training step.

    Args:
        model: model or classifier, in train mode.
        encoder: its encoder, or the model itself.
        mask_type: type of mask; "random_mask", which is not used, for a classifier.
        manifest: training clips.
        batch_size: clips per batch of the run.
        rows: clips of the measured batch, not more than that.
        max_samples: longer clips are cropped.
    """

    model: Any
    encoder: Any
    mask_type: str
    manifest: Manifest
    batch_size: int
    rows: list[int]
    max_samples: int | None

    def load(self, device: torch.device) -> Batch:
        """Read and collate the batch; on a CPU, the filterbank is computed here."""
        shortest = self.encoder.patch_shape.min_samples
        clips = []
        for row in self.rows:
            samples = read_or_skip(self.manifest, row, shortest, self.max_samples)
            if samples is not None:
                clips.append(Clip.of(row, samples, seed=0, epoch=0))
        if not clips:
            raise AudioError(f"{self.manifest.path}: none of the clips can be used")
        on_cpu = device.type == "cpu"
        collate = Collater(self.encoder.config, self.mask_type, compute_fbank=on_cpu)
        return collate(clips)

    def loss(self, batch: Batch, device: torch.device) -> Tensor:
        """Run the forward pass."""
        source = batch.source.to(device)
        if self.model is self.encoder:
            return pretraining_loss(self.model, source, batch.mask.to(device))
        logits = self.model(source)
        return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64, device=device))


def _training(run: Run, device: torch.device) -> _Training:
    assert run.checkpoint is not None
    if run.is_finetuned:
        model: Any = load_finetuned(run.checkpoint).model
        encoder, mask_type = model.encoder, "random_mask"
    else:
        model = encoder = load_masked(run.checkpoint)
        mask_type = str(model.mask_type)
    encoder.precision = run.setting("model", "precision") or encoder.config.precision
    manifest = run.load_manifest("train_subset", "train")
    crop = run.setting("task", "max_sample_size")
    sizes = manifest.num_samples
    typical = int(min(crop or sizes.max(), median(sizes.tolist())))
    tokens, clips = (run.setting("dataset", key) for key in ("max_tokens", "batch_size"))
    limits = [clips or 0, max(1, tokens // typical) if tokens else 0]
    batch_size = min(filter(None, limits), default=DEFAULT_BATCH)
    limit = MAX_BATCH_S.get(device.type, MAX_BATCH_S["cpu"]) * SAMPLE_RATE
    count = max(1, min(batch_size, int(limit / typical)))
    rows = evenly_spaced(len(manifest), count).tolist()
    model.to(device).train()
    return _Training(model, encoder, mask_type, manifest, batch_size, rows, crop)


def _measure(run: Run, device: torch.device) -> Times:
    training = _training(run, device)
    model, encoder = training.model, training.encoder
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    batch = training.load(device)
    parts = _parts(training, device)
    peak = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None
    num_samples = batch.num_samples // len(batch.ids)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    half = uses_bfloat16(encoder.precision, next(model.parameters()))
    counted = None
    if not run.is_finetuned:
        each = count_activations(encoder.config, training.mask_type, num_samples, half)
        counted = peak_bytes(parameters, each, training.batch_size, half) / 2**30
    return {
        "parts": parts,
        "clips": len(batch.ids),
        "seconds": num_samples / SAMPLE_RATE,
        "batch": training.batch_size,
        "parameters": parameters,
        "precision": "bfloat16" if half else "float32",
        "counted_gib": counted,
        "peak_gib": peak,
        "hardware": hardware(device.type),
    }


def _parts(training: _Training, device: torch.device) -> dict[str, float]:
    """Return the median time in seconds of each part of a step."""
    trained = [p for p in training.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.0, weight_decay=0.0, fused=True)
    taken: list[list[float]] = []
    begin = time.perf_counter()
    with torch.random.fork_rng(devices=[]):  # dropout
        while len(taken) <= MAX_STEPS and (len(taken) < 2 or time.perf_counter() - begin < LIMIT_S):
            marks = [_now(device)]
            batch = training.load(device)
            marks.append(_now(device))
            loss = training.loss(batch, device)
            marks.append(_now(device))
            loss.backward()
            marks.append(_now(device))
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            marks.append(_now(device))
            taken.append([end - start for start, end in pairwise(marks)])
    columns = zip(*taken[1:], strict=True)  # the first step initialises libraries and moments
    return {name: median(column) for name, column in zip(PARTS, columns, strict=True)}


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
