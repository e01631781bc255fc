"""Measurements of trainings, models and masks, as plain numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

import mae_ast
from mae_ast.core.frontend.masking import MASK_TYPES, structured_mask

from . import corpus, trainings, workspace

NUM_VALUES = 48  # of an array, evenly spaced
MASKED_UPDATES = 8  # whose masks are kept: one epoch and a part of the next
# Every stored model that ``mae_ast.load`` reads.
MODELS = (
    *(f"pretraining/{system}" for system in ("mae_ast", "ssast", "audio_mae")),
    *(f"released/{name}" for name in ("mae_ast.pt", "ssast.pth", "audio_mae.pth", "ast.pth")),
    *(f"finetuning/{system}" for system in trainings.FINETUNED),
    *("safetensors", "hugging_face_ast"),
)
RESUMED = ("mae_ast", "ssast", "audio_mae")


def summary(array: np.ndarray) -> dict[str, Any]:
    """Return shape, mean, std and some values of an array."""
    flat = array.astype(np.float64).ravel()
    chosen = np.linspace(0, flat.size - 1, min(NUM_VALUES, flat.size)).astype(int)
    return {
        "shape": list(array.shape),
        "mean": float(flat.mean()),
        "std": float(flat.std()),
        "values": [float(np.float32(value)) for value in flat[chosen]],
    }


def hidden_states(source: str) -> list[dict[str, Any]]:
    """Summaries of each layer's output for a clip of one second."""
    wave = torch.from_numpy(corpus.waveform(1_000, seconds=1.0).astype(np.int16))
    features = mae_ast.load(source).extract_features(wave)
    return [summary(states.numpy()) for states in features.hidden_states]


def strategies() -> dict[str, list[list[int]]]:
    """Masked patches of two clips for each strategy and two seeds."""
    draws: dict[str, Any] = {}
    for seed in (0, 1):
        for name, strategy in MASK_TYPES.items():
            grid, ratio = ((60, 1), 0.74) if name == "retain_spans" else ((9, 8), 0.75)
            generator = torch.Generator().manual_seed(seed)
            draws[f"{name}/{seed}"] = strategy(2, grid, ratio, generator).masked_ids.tolist()
        generator = torch.Generator().manual_seed(seed)
        structured = structured_mask(2, (9, 8), 0.3, 0.4, generator)
        draws[f"structured_mask/{seed}"] = structured.masked_ids.tolist()
    return draws


def predictions(root: Path, system: str) -> dict[str, float]:
    """Scores by label that ``mae-ast predict`` prints for a clip, with four decimals."""
    run, clip = root / "finetuning" / system, root / "data" / "valid_00.wav"
    lines = workspace.mae_ast("predict", run, clip, "--device", "cpu").splitlines()
    return {label: float(score) for _, score, label in (line.split("\t") for line in lines)}


def evaluation(root: Path, system: str) -> dict[str, float]:
    """Metrics that ``mae-ast evaluate`` prints, with four decimals."""
    given = (root / "finetuning" / system, root / "data", "--device", "cpu")
    _, *lines = workspace.mae_ast("evaluate", *given).splitlines()
    return {name: float(value) for name, value in (line.rsplit(maxsplit=1) for line in lines)}


def extracted(root: Path) -> dict[str, Any]:
    """Features of the training clips, the extraction of which is half done at first."""
    model, manifest, out = root / "released" / "mae_ast.pt", root / "data" / "train.tsv", root
    workspace.mae_ast("extract", model, manifest, out / "features", "--device", "cpu")
    features = np.load(root / "features" / "train_0_1.npy")
    lengths = (root / "features" / "train_0_1.len").read_text().split()
    return {"lengths": [int(length) for length in lengths], **summary(features)}


def train(root: Path) -> dict[str, Any]:
    """Pretrain and fine-tune each system."""
    pretrained = {f"pretrain_{system}": system for system in trainings.PRETRAINED}
    finetuned = {f"finetune_{system}": system for system in trainings.FINETUNED}
    found = trainings.run(
        root,
        {
            **{job: trainings.pretrain(root, system, job) for job, system in pretrained.items()},
            **{job: trainings.finetune(root, system, job) for job, system in finetuned.items()},
        },
    )
    for job in pretrained:
        found[job]["masked"] = trainings.without_padding(found[job]["masked"][:MASKED_UPDATES])
    for job in finetuned:
        found[job].pop("masked")
    return found


def resume(root: Path) -> dict[str, Any]:
    """Resume the stored runs, and begin one from the stored pack."""
    from_pack = ("optimization.max_update=3", "dataset.disable_validation=true")
    scheduled = f"lr_scheduler.total_num_update={trainings.PRETRAINING_UPDATES}"
    jobs = {
        f"resume_{system}": trainings.pretrain(root, system, f"pretraining/{system}")
        for system in RESUMED
    }
    jobs["resume_finetuning"] = trainings.finetune(root, "mae_ast", "finetuning/mae_ast")
    jobs["pretrain_from_pack"] = trainings.pretrain(
        root, "mae_ast", "from_pack", *from_pack, scheduled, data="pack"
    )
    found = trainings.run(root, jobs)
    for values in found.values():
        values.pop("masked")
    return found
