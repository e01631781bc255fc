"""Early stopping is final, also for a run that was interrupted and resumed before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mae_ast.trainer import several_runs, stop_request

from .classification import Log, finetune_here, write_corpus, write_pretrained
from .test_ending import requested_at

# Learns nothing, so accuracy never rises; three updates per epoch, validated after each epoch.
IDLE = (
    *("optimization.lr=[0.0]", "optimization.max_update=900", "optimization.max_epoch=30"),
    *("dataset.validate_interval=1", "checkpoint.save_interval=1"),
    *("checkpoint.best_checkpoint_metric=accuracy", "checkpoint.patience=4"),
)


@pytest.fixture(scope="module")
def tones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("tones"))


@pytest.fixture
def updates(train_here: Any, caplog: pytest.LogCaptureFixture, tones: Path, tmp_path: Path) -> Any:
    """Fine-tune in this process, and return the numbers of the updates."""
    pretrained = write_pretrained(tmp_path / "tiny.pt")

    def run(*overrides: str) -> list[int]:
        start = f"model.checkpoint={pretrained}"
        log: Log = finetune_here(caplog, "demo", tones, start, *IDLE, *overrides)
        return [int(line["num_updates"]) for line in log["train_inner"]]

    return run


def test_early_stop_ends_the_run(
    updates: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first validation is the best; four more end the run after fifteen updates."""
    monkeypatch.setattr(stop_request, "is_requested", requested_at(8))
    assert updates() == list(range(1, 9))
    assert not several_runs.is_trained(tmp_path)
    assert several_runs.was_interrupted(tmp_path)
    monkeypatch.setattr(stop_request, "is_requested", lambda: False)
    assert updates() == list(range(9, 16))
    assert several_runs.is_trained(tmp_path)
    assert not several_runs.was_interrupted(tmp_path)
    assert updates() == []
    assert updates("checkpoint.patience=5") == [16, 17, 18]


def test_time_limit_ends_the_run(updates: Any, tmp_path: Path) -> None:
    assert updates("optimization.stop_time_hours=0.000001") == [1]
    assert several_runs.is_trained(tmp_path)


def test_minimum_learning_rate_is_no_interruption(updates: Any, tmp_path: Path) -> None:
    """No checkpoint records that it was reached, but a restarted run ends at once."""
    decay = ("optimization.lr=[0.003]", "optimization.max_update=20")
    limit = "optimization.stop_min_lr=0.0029"
    assert updates(*decay, limit) == [1, 2, 3]
    assert not several_runs.is_trained(tmp_path)
    assert not several_runs.was_interrupted(tmp_path)
    assert updates(*decay, limit) == []
