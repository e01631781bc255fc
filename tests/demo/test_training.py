"""A training's program: what it logs is kept, and an early end is no result."""

from __future__ import annotations

import sys

import pytest
import torch

from mae_ast.core.checkpoint import RUN_FILE
from mae_ast.demo import training

LINES = """
print('[2026-01-01 00:00:00,000][train_inner][INFO] - {"mse": 0.5, "num_updates": "2"}')
print('[2026-01-01 00:00:00,000][fairseq.trainer][INFO] - {"no": "figures"}')
print('[2026-01-01 00:00:00,000][valid][INFO] - {"valid_mse": 0.4, "valid_num_updates": "2"}')
"""


@pytest.fixture
def program(monkeypatch):
    """``program(text)``: what runs instead of the trainer."""

    def set_program(text):
        command = [sys.executable, "-c", text]
        monkeypatch.setattr(training, "train_command", lambda *arguments: command)

    return set_program


@pytest.fixture
def saved(tmp_path):
    """``saved(n)``: a checkpoint of ``n`` updates is there."""

    def save(updates):
        path = tmp_path / RUN_FILE
        path.parent.mkdir(exist_ok=True)
        state = {"model": {}, "optimizer_history": [{"num_updates": updates}]}
        torch.save(state, path)

    return save


def test_what_is_logged_is_kept_and_goes_on(program, saved, tmp_path, capsys):
    program(LINES)
    saved(2)
    (tmp_path / "history.jsonl").write_text('{"kind": "train_inner", "num_updates": "1"}\n')
    history = training.train(tmp_path, tmp_path, 2)
    assert history == [
        {"kind": "train_inner", "num_updates": "1"},
        {"kind": "train_inner", "mse": 0.5, "num_updates": "2"},
        {"kind": "valid", "valid_mse": 0.4, "valid_num_updates": "2"},
    ]
    assert (tmp_path / "train.log").read_text().count("\n") == 3
    assert "2/2" in capsys.readouterr().err


@pytest.mark.parametrize("updates", [0, 2])
def test_an_early_end_is_said(program, saved, tmp_path, updates):
    program(LINES)
    if updates:
        saved(updates)
    with pytest.raises(SystemExit, match=rf"stopped after {updates} of 3 updates.*goes on"):
        training.train(tmp_path, tmp_path, 3)


def test_a_failure_names_the_log(program, tmp_path):
    program("print('no luck'); raise SystemExit(3)")
    with pytest.raises(SystemExit, match=r"training failed, see .*train\.log"):
        training.train(tmp_path, tmp_path, 3)
    assert (tmp_path / "train.log").read_text() == "no luck\n"
