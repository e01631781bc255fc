"""Fixtures: a labelled corpus of tones, and the folder of a pretraining run on it."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from mae_ast.core.io.labels import Labels, write_clip_labels
from mae_ast.core.io.manifest import write_manifest
from mae_ast.core.models.config import MaeAstConfig
from mae_ast.core.models.mae_ast import MaeAst

LABELS = Labels(("low", "high"), ("low", "<script>alert('high')</script>"))
PITCHES = (300.0, 2000.0)  # Hz
COUNTS = {"train": 6, "valid": 24}


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of ``COUNTS`` tones of 0.5 s; labels take turns."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    for split, count in COUNTS.items():
        rows = []
        for number in range(count):
            pitch = PITCHES[number % 2] * rng.uniform(0.9, 1.1)
            wave = 0.3 * np.sin(2 * math.pi * pitch * np.arange(8000) / 16_000)
            name = f"{split}_{number:02}.wav"
            soundfile.write(folder / name, wave + 0.01 * rng.standard_normal(8000), 16_000)
            rows.append((name, 8000, 16_000))
        write_manifest(folder / f"{split}.tsv", ".", rows)
        labels = [[LABELS.mids[number % 2]] for number in range(count)]
        write_clip_labels(folder / f"{split}.lbl", labels)
    LABELS.write(folder / "labels.csv")
    return folder


@pytest.fixture(scope="session")
def write_run(corpus: Path) -> Callable[..., Path]:
    """Factory ``write_run(folder, **settings)``: a run folder, with settings such as
    ``model__decoder_layers=2`` that differ from the others'."""

    def write(folder: Path, **settings: Any) -> Path:
        (folder / "checkpoints").mkdir(parents=True)
        _write_checkpoint(folder / "checkpoints" / "checkpoint_last.pt", corpus, settings)
        lines = [
            _line("train_inner", n, loss=9.0 - n / 10, ups=4.0, clips_per_s=32.0)
            for n in range(1, 41)
        ]
        lines += [_line("valid", n, loss=8.0 - n / 10, mse=0.2) for n in (20, 40)]
        lines.append(
            _line(
                "health", 40, rank_me=3.5, linear_accuracy=0.9, layer=1, log_mel_linear_accuracy=0.7
            )
        )
        _write_lines(folder / "metrics.jsonl", lines)
        start = {
            "timestamp": "2026-11-26T09:13:10.123+00:00",
            "num_updates": 0,
            "command": "mae-ast pretrain corpus --out run optimization.max_update=40",
            "commit": "abc1234",
            "hardware": "a machine",
            "versions": {"torch": "2.11.0"},
        }
        _write_lines(folder / "starts.jsonl", [start, {**start, "num_updates": 20}])
        (folder / "begun_with.json").write_text(json.dumps({"config": "demo"}))
        return folder

    return write


@pytest.fixture(scope="session")
def run(write_run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder that tests do not change."""
    return write_run(tmp_path_factory.mktemp("runs") / "tones")


def _line(kind: str, num_updates: int, **values: float) -> dict[str, Any]:
    stamp = f"2026-11-26T09:14:{num_updates:02}.000+00:00"
    return {"timestamp": stamp, "kind": kind, **values, "num_updates": num_updates}


def _write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")


def _write_checkpoint(path: Path, corpus: Path, settings: dict[str, Any]) -> None:
    cfg: dict[str, dict[str, Any]] = {
        "model": {
            "_name": "mae_ast",
            "encoder_layers": 2,
            "encoder_embed_dim": 32,
            "encoder_ffn_embed_dim": 64,
            "encoder_attention_heads": 4,
            "decoder_layers": 1,
            "decoder_embed_dim": 32,
            "dropout": 0.0,
            "random_mask_prob": 0.75,
            "input_stats": "fixed",
            "input_mean": -7.0,
            "input_std": 4.0,
        },
        "task": {
            "_name": "mae_ast_pretraining",
            "data": str(corpus),
            "mask_type": "random_mask",
            "seed": 1,
        },
        "dataset": {"batch_size": 4, "train_subset": "train", "valid_subset": "valid"},
        "optimization": {"max_update": 40, "lr": [0.0015]},
    }
    for name, value in settings.items():
        section, _, key = name.partition("__")
        cfg[section][key] = value
    known = {field.name for field in dataclasses.fields(MaeAstConfig)}
    torch.manual_seed(1)
    model = MaeAst(MaeAstConfig(**{k: v for k, v in cfg["model"].items() if k in known}))
    history = [{"num_updates": 40}]
    torch.save({"cfg": cfg, "model": model.state_dict(), "optimizer_history": history}, path)
