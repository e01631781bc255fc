"""Child process of a training: progress, interruption and failure."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

import pytest
import torch

from mae_ast.core.checkpoints.reader import RUN_FILE
from scripts.demo import training

LINES = """
print('[2026-01-01 00:00:00,000][train_inner][INFO] - {"mse": 0.5, "num_updates": "2"}')
print('[2026-01-01 00:00:00,000][fairseq.trainer][INFO] - {"no": "metrics"}')
print('[2026-01-01 00:00:00,000][valid][INFO] - {"valid_mse": 0.4, "valid_num_updates": "2"}')
"""


@pytest.fixture
def program(monkeypatch):
    """``program(text)``: run this Python program in place of the trainer."""

    def set_program(text):
        command = [sys.executable, "-c", text]
        monkeypatch.setattr(training, "train_command", lambda *arguments: command)

    return set_program


@pytest.fixture
def saved(tmp_path):
    """``saved(n)``: write a checkpoint of ``n`` updates."""

    def save(updates):
        path = tmp_path / RUN_FILE
        path.parent.mkdir(exist_ok=True)
        state = {"model": {}, "optimizer_history": [{"num_updates": updates}]}
        torch.save(state, path)

    return save


def test_shows_progress_and_keeps_the_output(program, saved, tmp_path, capsys):
    program(LINES)
    saved(2)
    (tmp_path / "train.log").write_text("earlier\n")
    training.train(tmp_path, tmp_path, 2)
    assert (tmp_path / "train.log").read_text().count("\n") == 4
    assert "2/2" in (shown := capsys.readouterr().err)
    assert "mse=0.5" in shown


@pytest.mark.parametrize("updates", [0, 2])
def test_early_exit_is_an_error(program, saved, tmp_path, updates):
    program(LINES)
    if updates:
        saved(updates)
    with pytest.raises(SystemExit, match=rf"stopped after {updates} of 3 updates.*resumes"):
        training.train(tmp_path, tmp_path, 3)


def test_ctrl_c_is_forwarded_so_that_the_training_saves(program, saved, tmp_path, capsys):
    """The signal is sent to this process only, which forwards it to the training."""
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored if tests run in the background
    program("""
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(print("saved")))
signal.signal(signal.SIGINT, lambda *_: sys.exit(9))
print("up", flush=True)
time.sleep(60)
""")
    saved(2)
    thread = threading.Thread(target=interrupt_when_up, args=(tmp_path / "train.log",))
    thread.start()
    try:
        with pytest.raises(SystemExit) as end:
            training.train(tmp_path, tmp_path, 3)
    finally:
        thread.join()
        signal.signal(signal.SIGINT, before)
    assert end.value.code == 0
    assert (tmp_path / "train.log").read_text() == "up\nsaved\n"
    assert "stopped after 2 of 3 updates; the same command resumes" in capsys.readouterr().out


def interrupt_when_up(log):
    end = time.monotonic() + 30
    while not (log.is_file() and log.read_text()) and time.monotonic() < end:
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGINT)


def test_failure_names_the_log(program, tmp_path):
    program("print('no luck'); raise SystemExit(3)")
    with pytest.raises(SystemExit, match=r"training failed, see .*train\.log"):
        training.train(tmp_path, tmp_path, 3)
    assert (tmp_path / "train.log").read_text() == "no luck\n"
