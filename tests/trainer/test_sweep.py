"""Train several jobs of one command, and a job through submitit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from .conftest import (
    SMALL_DECODER,
    SMALL_ENCODER,
    SMALL_RUN,
    VALUES,
    WITHOUT_TENSORBOARD,
    Training,
)
from .ranks import TWO
from .test_ctrl_c import PROGRAM

RUN = (*SMALL_ENCODER, *SMALL_DECODER, *SMALL_RUN, "dataset.num_workers=0")
JOB = ("model.encoder_layers=2", "optimization.max_update=3", "dataset.num_workers=0")


def pretrain(corpus: Path, folder: Path, *arguments: str) -> Training:
    """Run ``mae-ast pretrain`` to the end; ``--multirun`` may stand between overrides."""
    command = [PROGRAM, "pretrain", str(corpus), "--out", "my runs", *RUN, *arguments]
    log = folder / f"{len(list(folder.glob('*.log')))}.log"
    run = Training(command, log, forked="hydra/launcher=submitit_local" not in arguments)
    try:
        return run.finish()
    finally:
        run.kill()


def state(run: Path, name: str = "checkpoint_last.pt") -> dict[str, Any]:
    found: dict[str, Any] = torch.load(run / "checkpoints" / name, weights_only=True)
    return found


def test_sweep_trains_and_resumes_each_job_in_its_own_folder(
    corpus: Path, tmp_path: Path, train_here: Callable[..., list[dict[str, str]]]
) -> None:
    out, layers = tmp_path / "my runs", "model.encoder_layers=1,2"
    first = pretrain(corpus, tmp_path, layers, "--multirun", "optimization.max_update=2")
    assert "[fairseq_cli.train]" not in first.output
    assert len(first.output.splitlines()) <= 40
    assert first.output.count(" - pretraining mae_ast, ") == 2
    assert "UserWarning" not in first.output
    rest = ("optimization.max_update=3", WITHOUT_TENSORBOARD)
    second = pretrain(corpus, tmp_path, layers, "--multirun", *rest)
    for number in (0, 1):
        run = out / str(number)
        last = state(run)
        assert last["cfg"]["model"]["encoder_layers"] == number + 1
        assert last["optimizer_history"][-1]["num_updates"] == 3
        assert state(run, "checkpoint_best.pt")["cfg"]["model"]["encoder_layers"] == number + 1
        assert list((run / "tblog" / "train_inner").iterdir())
    assert not (out / "checkpoints").exists()
    printed = [*first.stats("train_inner")[2:], *second.stats("train_inner")[1:]]
    alone = train_here(corpus, *JOB)
    assert [values(each) for each in printed] == [values(each) for each in alone]


def values(line: dict[str, str]) -> dict[str, str]:
    return {key: line[key] for key in VALUES if key in line}


def test_submitit_trains_a_job_in_the_folder_of_the_command(corpus: Path, tmp_path: Path) -> None:
    """It has several processes, although submitit's program does not import this package."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher.config")
    launcher = ("hydra/launcher=submitit_local", "--multirun", "hydra.launcher.timeout_min=9")
    pretrain(corpus, tmp_path, *launcher, "optimization.max_update=2", TWO, WITHOUT_TENSORBOARD)
    run = tmp_path / "my runs"
    assert state(run)["optimizer_history"][-1]["num_updates"] == 2
    (output,) = (run / ".submitit").glob("*/*_log.out")
    assert output.read_text()
