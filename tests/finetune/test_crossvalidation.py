"""Folds, their settings and scores; training runs are replaced by short programs."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from mae_ast.finetune import crossvalidation as folds
from mae_ast.finetune.crossvalidation import FoldScore
from mae_ast.trainer.several_runs import is_trained, was_interrupted, working_in


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for number in (1, 2, 10):
        folder = tmp_path / f"fold{number}"
        folder.mkdir()
        for name in folds.FILES_OF_A_FOLD:
            (folder / name).touch()
    (tmp_path / "labels.csv").touch()
    (tmp_path / "folded").touch()  # not a folder
    return tmp_path


def test_folds_are_sorted_by_number(data: Path) -> None:
    assert [path.name for path in folds.find_folds(data)] == ["fold1", "fold2", "fold10"]


def test_fewer_than_two_folds_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"0 folders fold\*.* two"):
        folds.find_folds(tmp_path)
    (tmp_path / "fold1").mkdir()
    with pytest.raises(FileNotFoundError, match=r"1 folder fold\*"):
        folds.find_folds(tmp_path)


@pytest.mark.parametrize("name", folds.FILES_OF_A_FOLD)
def test_missing_file_of_the_last_fold_is_named(data: Path, name: str) -> None:
    (data / "fold10" / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"fold10/{name}: no such file"):
        folds.find_folds(data)


@pytest.mark.parametrize("key", folds.OWN_KEYS)
def test_settings_that_must_differ_between_folds_are_refused(key: str) -> None:
    with pytest.raises(ValueError, match=f"{key}=x: each fold"):
        folds.check_overrides(["task.mixup=0.5", f"{key}=x"])
    folds.check_overrides(["common.tensorboard_logdir=null", "optimization.max_epoch=3"])


@pytest.mark.parametrize("count", [2, 5])
def test_mean_and_std_are_computed_from_the_rounded_scores(tmp_path: Path, count: int) -> None:
    values = np.random.default_rng(count).uniform(size=count).round(folds.DIGITS)
    scores = [
        FoldScore(f"fold{n + 1}", 400, "accuracy", float(value)) for n, value in enumerate(values)
    ]
    printed = [line.split() for line in folds.table(scores).splitlines()]
    shown = np.array([float(row[2]) for row in printed[1 : 1 + count]])
    assert shown.tolist() == values.tolist()
    mean, std = f"{np.mean(shown):.4f}", f"{np.std(shown, ddof=1):.4f}"
    assert printed[1 + count :] == [["mean", mean], ["std", std]]
    folds.write_scores(tmp_path / "folds.csv", scores)
    with (tmp_path / "folds.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["fold", "clips", "accuracy"]
    assert rows[:count] == [[s.fold, "400", f"{s.score:.4f}"] for s in scores]
    total = str(400 * count)
    assert rows[count:] == [["mean", total, mean], ["std", total, std]]


TASK = "MaeAstClassificationTask"
NEVER = {"max_update": 0, "max_epoch": 0, "stop_time_hours": 0.0}


@pytest.mark.parametrize(
    ("limits", "patience", "trained"),
    [
        ({"max_update": 90}, -1, True),
        ({"max_update": 91}, -1, False),
        ({"max_epoch": 3}, -1, True),
        ({"max_epoch": 4}, -1, False),
        ({"max_update": 100, "max_epoch": 3}, -1, True),
        ({"max_update": 100}, 2, True),
        ({"max_update": 100}, 3, False),
        ({"stop_time_hours": 0.9}, -1, True),
        ({"stop_time_hours": 1.1}, 0, False),
        ({}, -1, False),
    ],
)
def test_run_is_complete_at_any_of_its_limits(
    tmp_path: Path, limits: dict[str, float], patience: int, trained: bool
) -> None:
    """The run has 90 updates, 3 epochs, 1 hour and 2 validations without improvement."""
    assert not is_trained(tmp_path)
    assert was_interrupted(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    state = {
        "cfg": {"optimization": NEVER | limits, "checkpoint": {"patience": patience}},
        "optimizer_history": [{"num_updates": 90}],
        "extra_state": {
            "train_iterator": {"epoch": 4},
            "previous_training_time": 3600.0,
            TASK: {"early_stopping": {"best": 0.5, "num_runs": 2}, "interrupted": False},
        },
    }
    torch.save(state, tmp_path / "checkpoints" / "checkpoint_last.pt")
    assert is_trained(tmp_path) is trained
    assert not was_interrupted(tmp_path)
    state["extra_state"][TASK]["interrupted"] = True
    torch.save(state, tmp_path / "checkpoints" / "checkpoint_last.pt")
    assert was_interrupted(tmp_path)


def test_folds_trained_with_other_settings_are_refused(tmp_path: Path) -> None:
    with working_in(tmp_path, {"config": "esc50", "overrides": ["a=1"]}):
        pass
    with working_in(tmp_path, {"config": "esc50", "overrides": ["a=2"]}):
        pass  # nothing was trained yet
    (tmp_path / "fold1" / "checkpoints").mkdir(parents=True)
    (tmp_path / "fold1" / "checkpoints" / "checkpoint_last.pt").touch()
    with working_in(tmp_path, {"config": "esc50", "overrides": ["a=2"]}):
        pass
    with (
        pytest.raises(ValueError, match=r"with overrides \['a=2'\], not \['a=1'\]; give another"),
        working_in(tmp_path, {"config": "esc50", "overrides": ["a=1"]}),
    ):
        pass


def test_folds_with_other_clips_are_refused(tmp_path: Path) -> None:
    """Notes of earlier versions do not record the clips."""
    folder, out = tmp_path / "fold1", tmp_path / "out"
    folder.mkdir()
    (folder / "train.tsv").write_text("/root\na.wav\t9\n")
    before = folds.inputs_of([folder])
    assert list(before) == ["fold1/train.tsv"]
    (folder / "train.tsv").write_text("/moved\na.wav\t9\n")
    assert folds.inputs_of([folder]) == before
    (folder / "train.tsv").write_text("/root\na.wav\t8\n")
    after = folds.inputs_of([folder])
    (out / "fold1" / "checkpoints").mkdir(parents=True)
    (out / "fold1" / "checkpoints" / "checkpoint_last.pt").touch()
    with working_in(out, {"config": "esc50"}, before):
        pass
    with (
        pytest.raises(ValueError, match=r"with fold1/train\.tsv '1 line, sha256 \w{16}', not '1"),
        working_in(out, {"config": "esc50"}, after),
    ):
        pass
    (out / "settings.json").write_text('{"config": "esc50"}')
    with working_in(out, {"config": "esc50"}, after):
        pass


def program(text: str) -> list[str]:
    return [sys.executable, "-c", text]


@pytest.fixture
def lock(tmp_path: Path) -> Iterator[int]:
    with working_in(tmp_path / "out", {}) as lock:
        yield lock


def test_folder_is_locked_while_a_killed_program_s_child_lives(tmp_path: Path) -> None:
    """The training process of a killed program may still be running."""
    out = tmp_path / "out"
    text = f"""
import os, signal, sys
from pathlib import Path
from mae_ast.trainer.child_training import Trainings
from mae_ast.trainer.several_runs import working_in
with working_in(Path({str(out)!r}), {{}}) as lock, Trainings() as trainings:
    trainings.run([sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"],
                  [lock])
"""
    with subprocess.Popen(program(text), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.kill()
        process.wait()
        try:
            with (
                pytest.raises(ValueError, match="another process"),
                working_in(out, {}),
            ):
                pass
        finally:
            for child in children:
                os.kill(int(child), signal.SIGKILL)
    end = time.monotonic() + 10
    while True:
        try:
            with working_in(out, {}):
                return
        except ValueError:
            assert time.monotonic() < end
            time.sleep(0.05)
