"""Feature monitor in pretraining: metrics in log and TensorBoard, unchanged weights."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mae_ast.core.io.labels import write_clip_labels

from .classification import write_corpus
from .conftest import ONLY_TRAINING, WITH_TENSORBOARD, Start, write_clips
from .test_plots import read_events

Train = Callable[..., list[dict[str, str]]]
RUN = (
    *("dataset.num_workers=0", "optimization.max_update=5", "checkpoint.save_interval_updates=0"),
    *("model.dropout=0.2", "model.encoder_layerdrop=0.3", "dataset.max_tokens=16000"),
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_clips(tmp_path, "train", [1.0] * 6)
    write_clips(tmp_path, "valid", [1.0, 0.8, 0.9, 1.0, 0.7])
    write_corpus(tmp_path / "labelled")
    return tmp_path


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = torch.load(run / "checkpoint_last.pt", weights_only=True)
    return weights["model"]  # type: ignore[return-value]


def scalars(folder: Path, number: int) -> dict[tuple[int, str], float]:
    """Return scalars by step and tag, once ``number`` are there (another thread writes them)."""
    end = time.monotonic() + 30
    while True:
        found = {
            (event.step, value.tag): value.simple_value
            for event in read_events(folder)
            for value in event.summary.value
        }
        if len(found) >= number or time.monotonic() > end:
            return found
        time.sleep(0.2)


def test_metrics_are_logged_and_weights_are_unchanged(
    data: Path, train_here: Train, caplog: pytest.LogCaptureFixture
) -> None:
    train_here(data, *RUN, f"checkpoint.save_dir={data}/without")
    monitor = ("task.probe_interval_updates=2", f"task.probe_data={data}/labelled")
    train_here(data, *RUN, WITH_TENSORBOARD, f"checkpoint.save_dir={data}/with", *monitor)
    lines = [json.loads(r.getMessage()) for r in caplog.records if r.name == "health"]
    assert [line["num_updates"] for line in lines] == [2, 4]
    for line in lines:
        assert 1 <= line["rank_me"] <= 5
        assert 0.3 < line["linear_accuracy"] <= 1
        assert 0.3 < line["knn_accuracy"] <= 1
        assert line["log_mel_linear_accuracy"] == 1  # tones of three pitches
        assert line["layer"] in (1, 2)
        assert line["skipped"] == 0
        assert line["seconds"] > 0
    logged = {
        (line["num_updates"], name) for line in lines for name in line if name != "num_updates"
    }
    written = scalars(data / "tblog" / "health", len(logged))
    assert set(written) == logged
    for line in lines:
        expected = pytest.approx(line["rank_me"], abs=1e-3)
        assert written[line["num_updates"], "rank_me"] == expected
    one, other = weights_of(data / "without"), weights_of(data / "with")
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def test_monitor_is_off_by_default(
    data: Path, train_here: Train, caplog: pytest.LogCaptureFixture
) -> None:
    train_here(data, *RUN, WITH_TENSORBOARD, "checkpoint.no_save=true")
    assert not [r for r in caplog.records if r.name == "health"]
    assert not (data / "tblog" / "health").exists()


def test_skips_an_unreadable_clip(
    data: Path, train_here: Train, caplog: pytest.LogCaptureFixture
) -> None:
    (data / "labelled" / "valid_03.flac").write_bytes(b"no music")
    monitor = ("task.probe_interval_updates=5", f"task.probe_data={data}/labelled")
    assert len(train_here(data, *RUN, "checkpoint.no_save=true", *monitor)) == 5
    (line,) = [json.loads(r.getMessage()) for r in caplog.records if r.name == "health"]
    assert line["skipped"] == 1


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["task.probe_interval_updates=-1"],
            "task.probe_interval_updates=-1; must be an integer >= 0",
        ),
        (["task.probe_clips=5"], "task.probe_clips=5; at least 20"),
        (["task.probe_data=/no/such"], "/no/such/train.tsv: no such manifest"),
        (["task.probe_data=DATA/unlabelled"], "labels.csv"),
        (["task.probe_data=DATA/one_class"], "24 clips of 1 class for a probe"),
        (["dataset.valid_subset=held", "dataset.disable_validation=true"], "held.tsv: no such"),
    ],
)
def test_invalid_settings_exit_before_training(
    data: Path, train_here: Train, overrides: list[str], words: str
) -> None:
    for name in ("unlabelled", "one_class"):
        shutil.copytree(data / "labelled", data / name)
    (data / "unlabelled" / "labels.csv").unlink()
    write_clip_labels(data / "one_class" / "train.lbl", [["low"]] * 24)
    given = [each.replace("DATA", str(data)) for each in overrides]
    with pytest.raises(SystemExit) as refusal:
        train_here(data, *RUN, "task.probe_interval_updates=2", *given)
    assert words in str(refusal.value.code)
    assert str(refusal.value.code).startswith("mae-ast: error: ")
    assert "\n" not in str(refusal.value.code)


def test_probe_data_is_relative_to_the_working_directory(data: Path, start: Start) -> None:
    training = start(
        data, *RUN, *ONLY_TRAINING, "task.probe_interval_updates=3", "task.probe_data=labelled"
    )
    assert training.log.parent == data
    (line,) = training.finish().stats("health")
    assert line["num_updates"] == 3
    assert line["linear_accuracy"] > 0.3
