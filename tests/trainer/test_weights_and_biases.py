"""Logging to Weights & Biases, with a stand-in for the package that writes what it is given."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mae_ast.trainer.fairseq_patches import weights_and_biases
from mae_ast.trainer.metrics_log import read_metrics

from .test_metrics_log import RUN, starts

Train = Callable[..., list[dict[str, str]]]

# As the real package does, it begins no second run in a process, and its steps only increase.
STAND_IN = """
import json, os

class Config:
    def update(self, values, allow_val_change=False):
        write("config", lr=values["optimization"]["lr"])

run, config, last = None, Config(), -1

def write(call, **values):
    with open(os.environ["WANDB_CALLS"], "a") as file:
        file.write(json.dumps({"call": call, **values}) + "\\n")

def init(project, name, id, resume, allow_val_change):
    global run
    assert run is None
    if os.environ.get("WANDB_MODE") != "offline":
        raise RuntimeError("No API key configured.\\nMore lines.")
    run = id
    write("init", project=project, name=name, id=id, resume=resume)

def log(values, step):
    global last
    assert run is not None
    assert step >= last
    assert all(isinstance(value, (int, float)) for value in values.values())
    last = step
    write("log", step=step, values=values)

def finish():
    global run
    write("finish")
    run = None
"""
SETTINGS = (*RUN, "common.wandb_project=birds", "checkpoint.save_interval_updates=2")


@pytest.fixture
def wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Folder of the stand-in, which is imported as ``wandb``; it logs to ``calls.jsonl``."""
    folder = tmp_path / "stand-in"
    folder.mkdir()
    (folder / "wandb.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setenv("WANDB_CALLS", str(folder / "calls.jsonl"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    yield folder
    weights_and_biases.end()


def test_all_values_are_logged_and_a_resumed_run_continues(
    corpus: Path, train_here: Train, wandb: Path, tmp_path: Path
) -> None:
    train_here(corpus, *SETTINGS, "optimization.max_update=4")
    train_here(corpus, *SETTINGS, "optimization.max_update=5")
    calls = [json.loads(line) for line in (wandb / "calls.jsonl").read_text().splitlines()]
    names = [call["call"] for call in calls if call["call"] not in ("log", "config")]
    assert names == ["init", "finish", "init", "finish"]
    first, second = (call for call in calls if call["call"] == "init")
    assert first == second
    assert first["project"] == "birds"
    assert first["name"] == f"{tmp_path.parent.name}/{tmp_path.name}"
    assert [each["wandb_run_id"] for each in starts(tmp_path)] == [first["id"]] * 2
    values = {
        (call["step"], name): value
        for call in calls
        if call["call"] == "log"
        for name, value in call["values"].items()
    }
    for line in read_metrics(tmp_path):
        for name in ("loss", "gnorm", "rank_me"):
            if name in line:
                key = line["num_updates"], f"{line['kind']}/{name}"
                assert values[key] == pytest.approx(line[name], abs=1e-3)
    assert {(4, "health/rank_me"), (5, "train/loss"), (2, "valid/loss")} <= values.keys()


def test_problems_end_the_command_in_one_line(
    corpus: Path, train_here: Train, wandb: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_MODE")
    with pytest.raises(SystemExit) as refusal:
        train_here(corpus, *SETTINGS)
    assert refusal.value.code == (
        "mae-ast: error: common.wandb_project=birds: cannot start a run (No API key configured.); "
        "run `wandb login`, or set WANDB_MODE=offline"
    )
    monkeypatch.delitem(sys.modules, "wandb")
    (wandb / "wandb.py").unlink()
    with pytest.raises(SystemExit) as refusal:
        train_here(corpus, *SETTINGS)
    assert refusal.value.code == (
        "mae-ast: error: common.wandb_project=birds: wandb is not installed; pip install wandb"
    )
