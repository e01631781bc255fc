"""Checkpoints are written atomically and once; a failed save ends the run with one line."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mae_ast.core.checkpoints.run_files import list_checkpoints, read_saved
from mae_ast.trainer.fairseq_patches import checkpoint_saving
from mae_ast.trainer.fairseq_patches.checkpoint_saving import SavingError, link_or_copy

from .conftest import Start, write_clips
from .ranks import start_ranks

Train = Callable[..., list[dict[str, str]]]

# Two updates per epoch; saved after each update, validated after each epoch.
EPOCHS = (
    *("dataset.batch_size=2", "dataset.num_workers=0", "dataset.validate_interval=1"),
    *("checkpoint.save_interval_updates=1", "checkpoint.keep_interval_updates=10"),
    "common.tensorboard_logdir=null",
)


@pytest.fixture(scope="module")
def four_clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("four")
    write_clips(folder, "train", [1.0, 1.1, 1.2, 1.3])
    write_clips(folder, "valid", [1.0, 1.1], first_seed=10)
    return folder


def updates(folder: Path) -> dict[str, int]:
    """Return the number of updates of each checkpoint."""
    return {path.name: read_saved(path).num_updates for path in list_checkpoints(folder)}


@pytest.fixture
def refusal(train_here: Train, four_clips: Path) -> Callable[..., str]:
    """Return the one line that a training ends with."""

    def refusal(*overrides: str) -> str:
        with pytest.raises(SystemExit) as end:
            train_here(four_clips, *EPOCHS, *overrides)
        text = end.value.code
        assert isinstance(text, str)
        assert text.startswith("mae-ast: error: ")
        assert "\n" not in text
        return text

    return refusal


# --- saving -------------------------------------------------------------------------------------


def test_names_of_one_state_share_a_file(
    train_here: Train, four_clips: Path, tmp_path: Path
) -> None:
    train_here(four_clips, *EPOCHS, "optimization.max_update=3")
    folder = tmp_path / "checkpoints"
    found = updates(folder)
    assert found == {
        "checkpoint_1_1.pt": 1,
        "checkpoint_2_3.pt": 3,
        "checkpoint_best.pt": 3,
        "checkpoint_last.pt": 3,
    }
    inodes = {name: (folder / name).stat().st_ino for name in found}
    assert len({inodes[name] for name, number in found.items() if number == 3}) == 1
    assert len(set(inodes.values())) == 2
    first = (folder / "checkpoint_2_3.pt").read_bytes()
    train_here(four_clips, *EPOCHS, "optimization.max_update=5")
    assert updates(folder)["checkpoint_last.pt"] == 5
    assert (folder / "checkpoint_2_3.pt").read_bytes() == first
    assert not list(folder.glob("*.tmp"))


def test_file_is_copied_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    (tmp_path / "a").write_text("new")
    (tmp_path / "b").write_text("old")
    with pytest.raises(FileExistsError):
        link_or_copy(str(tmp_path / "a"), str(tmp_path / "b"))
    link_or_copy(str(tmp_path / "a"), str(tmp_path / "b"), overwrite=True)
    assert (tmp_path / "b").read_text() == "new"
    assert (tmp_path / "a").stat().st_ino != (tmp_path / "b").stat().st_ino
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_linking_twice_leaves_no_temporary_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("new")
    for _ in range(2):
        link_or_copy(str(tmp_path / "a"), str(tmp_path / "b"), overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


@pytest.mark.parametrize("small_disk", ["3m"], indirect=True)
def test_full_disk_ends_in_one_line_and_keeps_the_last_checkpoint(
    refusal: Callable[..., str], small_disk: Path
) -> None:
    """A checkpoint takes about 1.8 MB."""
    save = f"checkpoint.save_dir={small_disk}".replace(" ", "\\ ")
    text = refusal(save)
    assert text.startswith(f"mae-ast: error: ended at update 2: {small_disk}/checkpoint_best.pt: ")
    assert "not saved (no space left on device; 1.8" in text
    assert text.endswith("the same command resumes from them")
    names = ("checkpoint_1_1.pt", "checkpoint_best.pt", "checkpoint_last.pt")
    assert updates(small_disk) == dict.fromkeys(names, 1)
    assert {path.name for path in small_disk.iterdir()} == {*names, "last_save.json"}


@pytest.mark.parametrize("small_disk", ["3m"], indirect=True)
def test_all_ranks_follow_rank_0(
    four_clips: Path, start: Start, small_disk: Path, tmp_path: Path
) -> None:
    """Rank 0 starts from scratch although rank 1 has a checkpoint; if it cannot save, both end."""
    folders = [tmp_path / f"rank_{rank}" for rank in range(2)]
    for folder in folders:
        folder.mkdir()
    (folders[0] / "checkpoints").symlink_to(small_disk)
    (folders[1] / "checkpoints").mkdir()
    (folders[1] / "checkpoints" / "checkpoint_last.pt").write_bytes(b"of another run")
    runs = start_ranks(start, [four_clips, four_clips], *EPOCHS, out="rank")
    for run in runs:
        assert run.wait() == 1, run.tail
        assert "Traceback" not in run.output
        (line,) = [each for each in run.errors.splitlines() if each.startswith("mae-ast: error: ")]
        assert "not saved (no space left on device; 1.8" in line
    assert sorted(runs[0].updates) == [1, 2]
    assert updates(small_disk)["checkpoint_last.pt"] == 1
    assert (folders[1] / "checkpoints" / "checkpoint_last.pt").read_bytes() == b"of another run"


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_other_write_errors_end_in_one_line(
    refusal: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int
) -> None:
    def fsync(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    text = refusal("optimization.max_update=2")
    assert f"update 1: {tmp_path}/checkpoints/checkpoint_1_1.pt: not saved (" in text
    assert os.strerror(number).lower() in text
    assert os.listdir(tmp_path / "checkpoints") == []


def test_transient_error_is_retried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fsync, failures = os.fsync, [errno.EIO, errno.ESTALE]

    def fail_twice(number: int) -> None:
        if failures:
            raise OSError(failures[0], os.strerror(failures.pop(0)))
        fsync(number)

    monkeypatch.setattr(os, "fsync", fail_twice)
    monkeypatch.setattr(checkpoint_saving, "_RETRY_DELAYS_S", (0.0, 0.0))
    path = tmp_path / "checkpoint_last.pt"
    save = checkpoint_saving._save_atomically(lambda *_: None)
    save({"weight": torch.arange(100.0)}, str(path))
    assert torch.equal(torch.load(path)["weight"], torch.arange(100.0))
    assert [record.message.endswith("retrying") for record in caplog.records] == [True, True]
    failures += [errno.EIO] * 3
    with pytest.raises(SavingError, match=r"not saved \(input/output error; 36\.0B needed"):
        save({"weight": torch.arange(9.0)}, str(path))
    assert torch.equal(torch.load(path)["weight"], torch.arange(100.0))
    assert os.listdir(tmp_path) == ["checkpoint_last.pt"]


def test_unwritable_folder_is_named(refusal: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    text = refusal(f"checkpoint.save_dir={tmp_path}/file/checkpoints")
    assert f"checkpoint.save_dir={tmp_path}/file/checkpoints: cannot be written to (Not a" in text
