"""A run whose last checkpoint is missing or damaged resumes from another one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import mae_ast
from mae_ast.hub import export
from mae_ast.hub.load import load_masked

from .conftest import Start, write_clips
from .ranks import start_ranks

Train = Callable[..., list[dict[str, str]]]

# Two updates per epoch; saved after each update, never validated.
EPOCHS = (
    *("dataset.batch_size=2", "dataset.num_workers=0", "dataset.disable_validation=true"),
    *("checkpoint.save_interval_updates=1", "checkpoint.keep_interval_updates=10"),
    "common.tensorboard_logdir=null",
)


@pytest.fixture(scope="module")
def four_clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("four")
    write_clips(folder, "train", [1.0, 1.1, 1.2, 1.3])
    return folder


def until(number: int) -> tuple[str, ...]:
    return (*EPOCHS, f"optimization.max_update={number}")


@pytest.fixture
def begun(train_here: Train, four_clips: Path, tmp_path: Path) -> Path:
    """Folder with checkpoints after 1, 3 and 4 updates; the latter is the last one."""
    train_here(four_clips, *until(4))
    folder = tmp_path / "checkpoints"
    names = {path.name for path in folder.glob("*.pt")}
    assert names == {"checkpoint_1_1.pt", "checkpoint_2_3.pt", "checkpoint_last.pt"}
    return folder


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("damage", [Path.unlink, truncate, lambda path: os.truncate(path, 0)])
def test_resumes_from_the_newest_complete_checkpoint(
    train_here: Train,
    begun: Path,
    four_clips: Path,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path], None],
) -> None:
    (begun / "checkpoint_3_5.pt.tmp").write_bytes(b"half")  # left by a killed run
    expected = train_here(four_clips, *until(6))
    damage(begun / "checkpoint_last.pt")
    (begun / "checkpoint_3_5.pt").unlink()
    found = train_here(four_clips, *until(6))
    assert [line["num_updates"] for line in found] == ["4", "5", "6"]
    for after, before in zip(found[1:], expected, strict=True):
        assert (after["loss"], after["gnorm"]) == (before["loss"], before["gnorm"])
    assert "resuming from checkpoint_2_3.pt at update 3, updates lost: 3" in caplog.text
    assert not list(begun.glob("*.tmp"))


@pytest.mark.parametrize("preset_first", [False, True])
def test_runs_of_fairseqs_adam_and_of_the_preset_resume_one_another(
    train_here: Train, four_clips: Path, preset_first: bool
) -> None:
    """Earlier versions of the presets had fairseq's optimizer; the moments are kept."""
    overrides: list[tuple[str, ...]] = [("optimizer._name=adam",), ()]
    first, second = reversed(overrides) if preset_first else overrides
    expected = train_here(four_clips, *until(5), "checkpoint.save_dir=whole")
    train_here(four_clips, *until(3), *first)
    found = train_here(four_clips, *until(5), *second)
    assert [line["num_updates"] for line in found] == ["4", "5"]
    for after, before in zip(found, expected[3:], strict=True):
        for key in ("loss", "gnorm"):
            assert float(after[key]) == pytest.approx(float(before[key]), abs=2e-3)  # rounded
    state = torch.load("checkpoints/checkpoint_last.pt", weights_only=True)["last_optimizer_state"]
    assert {each["step"] for each in state["state"].values()} == {5}


def test_all_ranks_resume_from_the_checkpoint_of_rank_0(
    four_clips: Path, start: Start, tmp_path: Path
) -> None:
    """Rank 1 has its own folder, without checkpoints."""
    folders = [four_clips, four_clips]
    run = (*EPOCHS, "dataset.batch_size=1")
    first, other = start_ranks(start, folders, *run, "optimization.max_update=4", out="rank")
    other.finish()
    expected = first.finish().updates
    checkpoints = tmp_path / "rank_0" / "checkpoints"
    (checkpoints / "checkpoint_last.pt").unlink()
    assert not list((tmp_path / "rank_1").rglob("*.pt"))
    first, other = start_ranks(start, folders, *run, "optimization.max_update=5", out="rank")
    other.finish()
    assert sorted(first.finish().updates) == [4, 5]
    assert "resuming from checkpoint_2_3.pt at update 3, updates lost: 1" in first.output
    assert first.updates[4]["loss"] == expected[4]["loss"]
    assert not list((tmp_path / "rank_1").rglob("*.pt"))


@pytest.fixture
def refusal(train_here: Train, four_clips: Path) -> Callable[..., str]:
    """Return the one line that a training ends with; check that no checkpoint changes."""

    def refusal(folder: Path, *overrides: str) -> str:
        before = {path.name: path.read_bytes() for path in folder.glob("*.pt")}
        with pytest.raises(SystemExit) as end:
            train_here(four_clips, *until(6), *overrides)
        text = end.value.code
        assert isinstance(text, str)
        assert text.startswith("mae-ast: error: ")
        assert "\n" not in text
        assert {path.name: path.read_bytes() for path in folder.glob("*.pt")} == before
        return text

    return refusal


def test_only_damaged_checkpoints_end_in_one_line(begun: Path, refusal: Callable[..., str]) -> None:
    for path in begun.glob("*.pt"):
        truncate(path)
    text = refusal(begun)
    assert "checkpoint_last.pt: damaged or incomplete" in text
    assert f"checkpoints can be resumed from; move {begun} elsewhere" in text


@pytest.mark.parametrize("kind", ["exported", "without optimizer"])
def test_checkpoint_without_optimizer_state_is_refused(
    begun: Path, refusal: Callable[..., str], train_here: Train, four_clips: Path, kind: str
) -> None:
    last = begun / "checkpoint_last.pt"
    if kind == "exported":
        export.to_released_file(load_masked(begun / "checkpoint_2_3.pt"), begun / "exported")
        (begun / "exported").replace(last)
    else:
        state = torch.load(last, weights_only=True)
        del state["last_optimizer_state"]
        torch.save(state, last)
    text = refusal(begun)
    assert f"{last}: has no optimizer state" in text
    assert "checkpoint.finetune_from_model" in text
    text = refusal(begun, f"checkpoint.restore_file={last}")
    assert f"{last}: has no optimizer state" in text
    # It is accepted if a new optimizer is requested.
    found = train_here(four_clips, *until(1), "checkpoint.reset_optimizer=true")
    assert [line["num_updates"] for line in found] == ["1"]


def test_missing_or_damaged_restore_file_is_named(begun: Path, refusal: Callable[..., str]) -> None:
    missing = begun / "none.pt"
    assert f"restore_file={missing}: no such file" in refusal(
        begun, f"checkpoint.restore_file={missing}"
    )
    truncate(begun / "checkpoint_1_1.pt")
    text = refusal(begun, f"checkpoint.restore_file={begun}/checkpoint_1_1.pt")
    assert "checkpoint_1_1.pt: damaged or incomplete" in text


def test_run_started_from_weights_resumes_from_its_own_checkpoint(
    train_here: Train, begun: Path, four_clips: Path, tmp_path: Path
) -> None:
    source = tmp_path / "weights.pt"
    export.to_released_file(load_masked(begun / "checkpoint_1_1.pt"), source)
    (begun / "checkpoint_last.pt").unlink()
    found = train_here(four_clips, *until(5), f"checkpoint.finetune_from_model={source}")
    assert [line["num_updates"] for line in found] == ["4", "5"]
    state = torch.load(begun / "checkpoint_last.pt", weights_only=True)
    assert state["cfg"]["checkpoint"]["finetune_from_model"] == str(source)
    assert state["cfg"]["checkpoint"]["restore_file"] == "checkpoint_last.pt"


def test_starts_from_a_checkpoint_of_the_authors_trainer(
    train_here: Train, begun: Path, four_clips: Path, tmp_path: Path
) -> None:
    """It holds the trainer's state and weights in the layout of the released files."""
    trained = torch.load(begun / "checkpoint_2_3.pt", weights_only=True)
    source = tmp_path / "theirs.pt"
    export.to_released_file(load_masked(begun / "checkpoint_2_3.pt"), source)
    released = torch.load(source, weights_only=True)
    torch.save({**trained, **released}, source)
    mae_ast.load(source)
    begun.rename(tmp_path / "first")
    idle = ("optimization.lr=[0.0]", f"checkpoint.finetune_from_model={source}")
    found = train_here(four_clips, *until(1), *idle)
    assert [line["num_updates"] for line in found] == ["1"]
    weights = torch.load(begun / "checkpoint_last.pt", weights_only=True)["model"]
    for name, value in trained["model"].items():
        if not name.startswith("batch_norm"):
            assert torch.equal(weights[name], value), name
