"""Settings of fine-tuning that follow from the size, lengths and labels of the data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mae_ast.core.io.labels import Labels, write_clip_labels
from mae_ast.core.io.manifest import write_manifest
from mae_ast.core.models.config import AstConfig, EncoderConfig, MaeAstConfig
from mae_ast.finetune.settings_from_data import (
    TrainingData,
    as_overrides,
    derive,
    settings_of_run,
)

BASE = MaeAstConfig()


def data(num_clips: int, seconds: float = 5.0, **fields: Any) -> TrainingData:
    fields = {"counts": (num_clips // 2, num_clips // 2), "multi_label": False, **fields}
    hours = num_clips * seconds / 3600
    return TrainingData(num_clips, hours, round(seconds * 16_000), **fields)


def settings(found: TrainingData, *given: str, encoder: EncoderConfig = BASE) -> dict[str, Any]:
    return {key.partition(".")[2]: value for key, value in derive(found, encoder, given).items()}


@pytest.mark.parametrize(
    ("num_clips", "seconds", "batch", "epochs", "rate"),
    [
        (60, 1.0, 8, 100, 1e-4),
        (400, 3.0, 32, 100, 2e-4),
        (1_600, 5.0, 32, 50, 2e-4),
        (20_000, 10.0, 16, 14, 1.4e-4),
        (20_000, 600.0, 16, 14, 1.4e-4),
        (85_000, 1.0, 128, 7, 4e-4),
        (2_000_000, 10.0, 16, 5, 1.4e-4),
    ],
)
def test_batch_epochs_and_rate_follow_from_the_size(
    num_clips: int, seconds: float, batch: int, epochs: int, rate: float
) -> None:
    found = settings(data(num_clips, seconds))
    assert found["batch_size"] == batch
    assert found["max_update"] == epochs * -(-num_clips // batch)
    assert found["lr"] == [rate]
    assert found["warmup_updates"] == pytest.approx(0.1 * found["max_update"], abs=1)
    assert found["validate_interval"] == found["save_interval"] == -(-epochs // 20)
    assert found["max_sample_size"] == 16_000 * min(seconds, 10)
    assert found["time_mask"] == pytest.approx(20 * min(seconds, 10), abs=1)


def test_narrow_models_get_a_higher_rate() -> None:
    narrow = MaeAstConfig(encoder_embed_dim=192)
    assert settings(data(1_600), encoder=narrow)["lr"] == [8e-4]


def test_labels_decide_their_kind_and_balancing() -> None:
    found = settings(data(100))
    assert (found["multi_label"], found["balanced"]) == (False, False)
    found = settings(data(100, counts=(75, 25), multi_label=True))
    assert (found["multi_label"], found["balanced"]) == (True, False)
    found = settings(data(100, counts=(76, 0, 24)))
    assert (found["multi_label"], found["balanced"]) == (False, True)


@pytest.mark.parametrize(
    ("seconds", "frames"), [(1.0, 112), (5.0, 512), (10.0, 1_008), (60, 1_008)]
)
def test_fixed_length_is_that_of_the_clips(seconds: float, frames: int) -> None:
    fixed = AstConfig(input_frames=1_024)
    assert settings(data(100, seconds), encoder=fixed)["input_frames"] == frames
    shorter = AstConfig(input_frames=128)
    assert settings(data(100, seconds), encoder=shorter)["input_frames"] == min(frames, 128)
    assert "input_frames" not in settings(data(100, seconds))


def test_settings_of_the_user_are_kept_and_others_follow() -> None:
    base = settings(data(1_600))
    found = settings(data(1_600), "dataset.batch_size=64", "+optimization.update_freq=[2]")
    assert "batch_size" not in found
    assert found["max_update"] == 50 * 13  # of 128 clips each
    assert found["lr"] == [4e-4]
    divided = ("task.batches_per_update=2", "distributed_training.distributed_world_size=2")
    assert settings(data(1_600), "dataset.batch_size=64", *divided) == found
    found = settings(data(1_600), "optimization.max_epoch=4", "optimization.lr=[0.1]")
    assert (found["max_update"], found["validate_interval"]) == (200, 1)
    assert "lr" not in found
    found = settings(data(1_600), "optimization.max_update=100")
    assert (found["warmup_updates"], found["validate_interval"]) == (10, 1)
    found = settings(data(1_600), "task.max_sample_size=16000")
    assert (found["batch_size"], found["time_mask"]) == (128, 20)
    found = settings(data(1_600), "dataset.batch_size=8,16")  # a sweep
    assert {**found, "batch_size": 32} == base


def write_data(folder: Path, valid: list[list[str]]) -> Path:
    folder.mkdir(parents=True)
    (folder / "a.wav").touch()
    Labels(("x", "y"), ("x", "y")).write(folder / "labels.csv")
    for split, labels in {"train": [["x"]] * 3 + [["y"]], "valid": valid}.items():
        rows = [("a.wav", 8_000, 8_000 * (n + 1)) for n in range(len(labels))]
        write_manifest(folder / f"{split}.tsv", str(folder), rows)
        write_clip_labels(folder / f"{split}.lbl", labels)
    return folder


def test_data_is_read(tmp_path: Path) -> None:
    found = TrainingData.read(write_data(tmp_path / "one", [["x"]]))
    assert (found.num_clips, found.longest_samples, found.counts) == (4, 16_000, (3, 1))
    assert not found.multi_label
    assert found.describe() == "4 clips, 0.00 h, 2 classes"
    assert TrainingData.read(write_data(tmp_path / "several", [["y", "x"]])).multi_label


def test_recorded_settings_are_used(tmp_path: Path) -> None:
    recorded = {"dataset.batch_size": 3, "optimization.lr": [0.5], "task.balanced": True}
    found, origin = settings_of_run(recorded, tmp_path / "none", "none", [])
    assert found == recorded
    assert origin == "as at the start of the run"
    overrides = as_overrides(found, ["optimization.lr=[1]"])
    assert overrides == ["dataset.batch_size=3", "task.balanced=true"]


def test_folds_and_image_weights_are_explained(tmp_path: Path) -> None:
    for number in (1, 2):
        write_data(tmp_path / "data" / f"fold{number}", [["x"]])
    words = "data: has 2 folds; fine-tune on one of them, such as .*fold1, or on all with"
    with pytest.raises(FileNotFoundError, match=words):
        settings_of_run(None, tmp_path / "data", "model.pt", [])
    with pytest.raises(ValueError, match=r"timm:x: image weights initialise AST; .* ast_esc50"):
        settings_of_run(None, tmp_path / "data" / "fold1", "timm:x", [])
