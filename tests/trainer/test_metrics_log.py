"""Metrics of a run in ``metrics.jsonl``, and the record of its starts."""

from __future__ import annotations

import errno
import json
import math
import platform
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mae_ast
from mae_ast.trainer import metrics_log, run_record
from mae_ast.trainer.metrics_log import METRICS_FILE, MetricsLog, read_metrics
from mae_ast.trainer.run_record import STARTS_FILE

from .classification import finetune_here
from .conftest import VALUES

Train = Callable[..., list[dict[str, str]]]

# Seven updates per epoch; validated and saved after updates 3, 6, 7, 9 and 10.
RUN = (
    *("dataset.batch_size=6", "dataset.num_workers=0", "common.tensorboard_logdir=null"),
    *("dataset.validate_interval_updates=3", "dataset.validate_interval=1"),
    *("checkpoint.save_interval_updates=3", "checkpoint.keep_interval_updates=9"),
    *("task.probe_interval_updates=4", "optimization.max_update=10"),
)
TIMES = {"timestamp", "wall", "train_wall", "wps", "ups", "clips_per_s", "seconds"}
MEMORY = {"peak_gib", "peak_gib_at_begin"}


def exact(run: Path) -> list[dict[str, Any]]:
    """Return the lines of a run without times, speeds and memory."""
    omitted = TIMES | MEMORY
    return [{k: v for k, v in line.items() if k not in omitted} for line in read_metrics(run)]


def starts(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / STARTS_FILE).read_text().splitlines()]


def test_every_logged_value_has_a_line_with_all_digits(
    corpus: Path, train_here: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train_here(corpus, *RUN)
    lines = read_metrics(tmp_path)
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        by_kind.setdefault(line["kind"], []).append(line)
    assert {kind: [line["num_updates"] for line in own] for kind, own in by_kind.items()} == {
        "train_inner": list(range(1, 11)),
        "train": [7, 10],
        "valid": [3, 6, 7, 9, 10],
        "health": [4, 8],
        "end": [10],
    }
    for kind in ("train_inner", "train", "valid"):
        logged = [json.loads(r.getMessage()) for r in caplog.records if r.name == kind]
        prefix = "" if kind == "train_inner" else f"{kind}_"
        for text, line in zip(logged, by_kind[kind], strict=True):
            names = {name.removeprefix(prefix) for name in text} - {"epoch", "update"}
            assert names == line.keys() - {"timestamp", "kind", "epoch"}
            assert line["epoch"] == text["epoch"]
            for name in names - TIMES:
                rounding = 0.05 if name in ("bsz", "wpb", "clip") else 5e-4
                close = pytest.approx(float(text[prefix + name]), abs=rounding, rel=1e-5)
                assert line[name] == close, name
    assert all("rank_me" in line for line in by_kind["health"])
    (end,) = by_kind["end"]
    assert 0 < end["seconds"] < 300
    assert 0.1 < end["peak_gib_at_begin"] <= end["peak_gib"] < 8
    first = by_kind["train_inner"]
    assert set(VALUES) <= first[0].keys()
    assert all(float(np.float32(line["loss"])) == line["loss"] for line in first)  # as computed
    assert any(round(line["loss"], 4) != line["loss"] for line in first)
    for name, digits in {"gnorm": 3, "ups": 2, "train_wall": 0}.items():  # digits in the log
        assert any(round(line[name], digits) != line[name] for line in first), name


def test_a_run_that_was_killed_has_the_lines_of_an_uninterrupted_one(
    corpus: Path, train_here: Train, tmp_path: Path
) -> None:
    train_here(corpus, *RUN)
    whole = exact(tmp_path)
    # As if it had been killed before it saved again, while it wrote a line.
    checkpoints = tmp_path / "checkpoints"
    shutil.copy(checkpoints / "checkpoint_1_6.pt", checkpoints / "checkpoint_last.pt")
    with (tmp_path / METRICS_FILE).open("ab") as file:
        file.write(b'{"timestamp": "2026-01-01T00')
    train_here(corpus, *RUN)
    assert exact(tmp_path) == whole
    assert [each["num_updates"] for each in starts(tmp_path)] == [0, 6]


def test_fine_tuning_logs_the_metrics_of_each_validation(
    train_here: Train,
    tones: Path,
    pretrained: Path,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    settings = ("optimization.max_update=3", "dataset.validate_interval_updates=1")
    finetune_here(caplog, "demo", tones, f"model.checkpoint={pretrained}", *settings)
    lines = [line for line in read_metrics(tmp_path) if line["kind"] == "valid"]
    assert [line["num_updates"] for line in lines] == [1, 2, 3]
    for line in lines:
        correct = line["accuracy"] * 9  # clips
        assert correct == pytest.approx(round(correct), abs=1e-12)  # not rounded


def test_a_start_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/mae-ast", "pretrain", "my data", "--out", "run"])
    monkeypatch.setenv("MAE_AST_COMMAND", "null")
    monkeypatch.chdir(tmp_path)
    run_record.defer_command()
    run = tmp_path / "run"
    run.mkdir()
    monkeypatch.chdir(run)
    monkeypatch.setattr(sys, "argv", ["launch.py", "and", "its", "overrides"])
    run_record.append(run, 7, "cpu", 2)
    (start,) = starts(run)
    assert start["num_updates"] == 7
    assert start["command"] == "mae-ast pretrain 'my data' --out run"
    assert start["folder"] == str(tmp_path)
    assert start["processes"] == 2
    assert start["versions"]["mae-ast"] == mae_ast.__version__
    assert start["versions"]["python"] == platform.python_version()
    assert torch.__version__.startswith(start["versions"]["torch"])
    assert start["versions"]["fairseq-fixed"] == "0.12.3.1"
    assert "GiB" in start["hardware"]
    assert start["host"]
    monkeypatch.setenv("MAE_AST_COMMAND", "null")
    run_record.append(run, 8, "cpu", 1)
    assert starts(run)[1]["command"] == "launch.py and its overrides"
    (run / STARTS_FILE).unlink()
    (run / STARTS_FILE).mkdir()
    run_record.append(run, 9, "cpu", 1)
    assert "starts.jsonl: cannot be written (Is a directory)" in caplog.text


def test_values_that_are_not_finite_are_null(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / METRICS_FILE, 0)
    values = {"a": math.nan, "b": torch.tensor(math.inf), "c": np.float64(0.1), "d": 2, "e": None}
    log.write("valid", 3, values, epoch=1)
    (line,) = read_metrics(tmp_path)
    del line["timestamp"]
    assert line == {
        **{"kind": "valid", "epoch": 1, "num_updates": 3},
        **{"a": None, "b": None, "c": 0.1, "d": 2, "e": None},
    }


def test_lines_after_the_checkpoint_are_removed_and_damaged_ones_too(tmp_path: Path) -> None:
    path = tmp_path / METRICS_FILE
    log = MetricsLog(path, 0)
    for update in (1, 2, 3):
        log.write("train_inner", update, {"loss": 1 / update})
    log.close()
    before = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([before[0], b'{"half\n', *before[1:], before[2][:20]]))
    assert [line["num_updates"] for line in read_metrics(tmp_path)] == [1, 2, 3]
    MetricsLog(path, 2).write("train_inner", 3, {"loss": 5.0})
    assert path.read_bytes().startswith(b"".join(before[:2]))
    assert [line["loss"] for line in read_metrics(tmp_path)] == [1.0, 0.5, 5.0]


def test_a_full_disk_leaves_whole_lines_and_does_not_stop_training(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    metrics_log.begin(small_disk, 0)
    (small_disk / "rest").write_bytes(b"")
    with (small_disk / "rest").open("wb", buffering=0) as rest:
        written = 1
        while written:
            try:
                written = rest.write(bytes(4096))
            except OSError:
                written = 0
    try:
        for update in range(1, 200):
            metrics_log.record("train_inner", update, {"loss": 0.5})
        (small_disk / "rest").unlink()
        metrics_log.record("train_inner", 200, {"loss": 0.25})
    finally:
        metrics_log.end()
    assert caplog.text.count("lines are missing (No space left on device)") == 1
    lines = (small_disk / METRICS_FILE).read_text().splitlines()
    updates = [json.loads(line)["num_updates"] for line in lines]
    assert updates[-1] == 200
    assert len(updates) < 200


def test_a_disk_that_is_gone_does_not_stop_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = MetricsLog(tmp_path / METRICS_FILE, 0)

    class Stale:  # as a file whose server is gone: every operation fails
        def __getattr__(self, name: str) -> Callable[..., int]:
            raise OSError(errno.ESTALE, "Stale file handle")

    with monkeypatch.context() as patch:
        patch.setattr(log, "_file", Stale())
        for update in (1, 2):
            log.write("train_inner", update, {"loss": 0.5})
    log.write("train_inner", 3, {"loss": 0.25})
    assert caplog.text.count("lines are missing (Stale file handle)") == 1
    assert [line["num_updates"] for line in read_metrics(tmp_path)] == [3]


def test_a_run_without_the_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=METRICS_FILE):
        read_metrics(tmp_path)
