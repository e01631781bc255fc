"""Selection of a run's checkpoint when some of its files are missing or damaged."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
import torch

from mae_ast.core.checkpoints.reader import CheckpointError, file_of
from mae_ast.core.checkpoints.run_files import latest, list_checkpoints, newest_whole, read_saved


def write(folder: Path, name: str, num_updates: int, optimizer: bool = True) -> Path:
    state = {
        "model": {"weight": torch.arange(4096.0)},
        "optimizer_history": [{"num_updates": num_updates}],
        "extra_state": {"train_iterator": {"epoch": 1}},
    }
    if optimizer:
        state["last_optimizer_state"] = {"state": {}}
    folder.mkdir(exist_ok=True)
    torch.save(state, folder / name)
    return folder / name


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def damage_content(path: Path) -> None:
    """Overwrite a tensor with zeros, as failing storage does."""
    content = bytearray(path.read_bytes())
    place = content.index(torch.arange(2000.0, 2100.0).numpy().tobytes())
    content[place : place + 400] = bytes(400)
    path.write_bytes(content)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoints"
    for name, num_updates in (
        ("checkpoint1.pt", 10),
        ("checkpoint_2_30.pt", 30),
        ("checkpoint_best.pt", 20),
        ("checkpoint_last.pt", 35),
        ("checkpoint.best_loss_1.502.pt", 25),
    ):
        write(folder, name, num_updates)
    for name in ("crash.pt", "checkpoint_3_40.pt.tmp", "model.pt", "checkpoint_last-shard0.pt"):
        write(folder, name, 99)
    return folder


def test_checkpoint_names_are_recognised(folder: Path) -> None:
    assert [path.name for path in list_checkpoints(folder)] == [
        "checkpoint.best_loss_1.502.pt",
        "checkpoint1.pt",
        "checkpoint_2_30.pt",
        "checkpoint_best.pt",
        "checkpoint_last.pt",
    ]
    assert list_checkpoints(folder / "none") == []


def test_intact_last_checkpoint_is_used(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    # Fewer updates than other files, as after going back to an earlier state.
    write(folder, "checkpoint_last.pt", 5)
    assert latest(folder) == folder / "checkpoint_last.pt"
    assert file_of(folder.parent) == folder / "checkpoint_last.pt"
    assert not caplog.records


@pytest.mark.parametrize("damage", [Path.unlink, truncate, lambda path: os.truncate(path, 0)])
def test_newest_intact_checkpoint_is_used_if_the_last_is_damaged(
    folder: Path, caplog: pytest.LogCaptureFixture, damage, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage(folder / "checkpoint_last.pt")
    with caplog.at_level(logging.WARNING):
        assert file_of(folder.parent) == folder / "checkpoint_2_30.pt"
    assert "checkpoint_last.pt: " in caplog.text
    assert "using checkpoint_2_30.pt (update 30)" in caplog.text
    damage_content(folder / "checkpoint_2_30.pt")
    assert read_saved(folder / "checkpoint_2_30.pt").num_updates == 30  # tensors are not read
    assert latest(folder) == folder / "checkpoint.best_loss_1.502.pt"
    assert "checkpoint_2_30.pt: " in caplog.text
    assert "wrong checksum" in caplog.text


def test_resuming_requires_the_optimizer_state(folder: Path) -> None:
    write(folder, "checkpoint_last.pt", 40, optimizer=False)
    for with_optimizer, updates in ((True, 30), (False, 40)):
        found = newest_whole(folder, with_optimizer)
        assert found is not None
        assert found.num_updates == updates


def test_all_checkpoints_damaged_is_an_error(folder: Path, tmp_path: Path) -> None:
    for path in list_checkpoints(folder):
        truncate(path)
    with pytest.raises(CheckpointError, match=r"last\.pt: .*; no other checkpoint in "):
        latest(folder)
    assert latest(tmp_path / "none") is None
