"""Measure training end to end: from FLAC files, and with synthetic batches."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from mae_ast.bench.files import FILES, PART_S, write_corpus
from mae_ast.bench.setting import Case, Column, Part, Row, Setting
from mae_ast.bench.steps import QUICK
from mae_ast.core.io.audio import SAMPLE_RATE
from mae_ast.core.models.config import MaeAstConfig
from mae_ast.trainer.command import train_command
from mae_ast.trainer.metrics_log import read_metrics

WARM_UP_RATIO = 0.25  # fraction of the updates
LIMIT_S = 240


def training_cases(setting: Setting) -> list[Case]:
    """Return cases from files, and with one batch that is reused."""
    return [
        {"name": "from FLAC", "module": "mae_ast.launch", "workers": setting.workers},
        {"name": "synthetic batches", "module": "mae_ast.bench.synthetic", "workers": 0},
    ]


def measure_training(case: Case, setting: Setting) -> Row:
    """Measure the clips per second of ``fairseq-hydra-train``, from a warm-up to the last update.

    Raises:
        RuntimeError: training failed; the message holds the last line of its output.
    """
    batch = int(setting.pick(cpu=4, gpu=256, quick=4))
    updates = int(setting.pick(cpu=12, gpu=80, quick=4))
    every = int(setting.pick(cpu=1, gpu=5, quick=1))
    folder = Path(setting.folder) / "training"
    write_corpus(folder, 4 if setting.quick else FILES, batch * (updates + 2))
    out = Path(setting.folder) / "run"
    shutil.rmtree(out, ignore_errors=True)
    command = train_command(
        folder,
        "mae_ast",
        out,
        [
            f"dataset.batch_size={batch}",
            "dataset.max_tokens=null",
            f"dataset.num_workers={case['workers']}",
            "dataset.disable_validation=true",
            "checkpoint.no_save=true",
            "common.tensorboard_logdir=null",
            f"common.log_interval={every}",
            f"common.cpu={str(not setting.is_gpu).lower()}",
            f"optimization.max_update={updates}",
            f"task.max_sample_size={PART_S * SAMPLE_RATE}",
            *model_overrides(setting),
        ],
    )
    command[command.index("mae_ast.launch")] = case["module"]
    log = out.with_name(f"run_{case['workers']}.log")
    with log.open("w") as output:
        status = subprocess.run(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            timeout=LIMIT_S,
            check=False,
            env={**os.environ, "HYDRA_FULL_ERROR": "1"},
        ).returncode
    text = log.read_text(errors="replace")
    if status:
        lines = text.strip().splitlines() or ["nothing was printed"]
        raise RuntimeError(f"training ended with status {status}: {lines[-1]}")
    seconds = seconds_per_update(read_metrics(out), round(WARM_UP_RATIO * updates))
    return {**case, "batch": batch, "update_s": seconds, "clips_per_s": batch / seconds}


def model_overrides(setting: Setting) -> list[str]:
    """Return overrides of the model settings that MAE-AST has; the others are dropped."""
    own = {field.name for field in dataclasses.fields(MaeAstConfig)}
    asked = {key: value for key, value in setting.model.items() if key in own}
    model = {**(QUICK if setting.quick else {}), "precision": setting.precision, **asked}
    return [f"++model.{k}={'null' if v is None else v}" for k, v in model.items()]


def seconds_per_update(lines: Sequence[Mapping[str, Any]], warm_up: int) -> float:
    """Compute the mean time of an update after the warm-up from the lines of ``metrics.jsonl``.

    Raises:
        RuntimeError: the log has fewer than two updates after the warm-up.
    """
    logged = [
        (datetime.fromisoformat(line["timestamp"]), line["num_updates"])
        for line in lines
        if line["kind"] == "train_inner" and line["num_updates"] >= warm_up
    ]
    if len(logged) < 2:
        raise RuntimeError("training logged fewer than two updates after its warm-up")
    (begin, first), (end, last) = logged[0], logged[-1]
    return float((end - begin).total_seconds() / (last - first))


TRAINING = Part(
    "End to end",
    "`fairseq-hydra-train` with the preset `mae_ast` (12 + 2 layers, with dropout) on crops of "
    "10 s, from FLAC files, and with one such batch that is reused.",
    training_cases,
    measure_training,
    (
        Column("", "name"),
        Column("clips", "batch", "d"),
        Column("workers", "workers", "d"),
        Column("ms/update", "update_s", ".1f", 1000),
        Column("clips/s", "clips_per_s", ".1f"),
    ),
    lambda setting: setting.pick(cpu=75, gpu=50, quick=15),
)
