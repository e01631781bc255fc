"""Checkpoints are written in the background: as without, in order, and before the program ends."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.tasks import FairseqTask
from fairseq.trainer import Trainer
from omegaconf import OmegaConf

from mae_ast.plugin import register
from mae_ast.trainer import stop_request
from mae_ast.trainer.fairseq_patches import checkpoint_saving
from mae_ast.trainer.fairseq_patches.background_saving import Writer, copy_to_host, writer
from mae_ast.trainer.preemption import InterruptibleTask

from .conftest import forget_the_best, write_clips
from .test_ending import requested_at

Train = Callable[..., list[dict[str, str]]]

SLOW_S = 0.3
WAIT_S = 30


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    register()
    forget_the_best()
    yield
    writer.wait()


class Run:
    """Saves of a run whose weight is the number of its updates.

    Args:
        folder: folder of the checkpoints.
        in_background: write them in the background.
        settings: settings ``checkpoint.*``.
    """

    def __init__(self, folder: Path, in_background: bool = True, **settings: Any) -> None:
        self.folder = folder
        defaults = OmegaConf.structured(checkpoint_utils.CheckpointConfig)
        self.cfg = OmegaConf.merge(defaults, {"save_dir": str(folder), **settings})
        self.weight = torch.zeros(3)
        self.num_updates = 0
        task = SimpleNamespace(save_in_background=in_background)
        cfg = SimpleNamespace(task=task, checkpoint=self.cfg)
        self.trainer = SimpleNamespace(
            cfg=cfg,
            task=None,
            data_parallel_rank=0,
            should_save_checkpoint_on_current_rank=True,
            checkpoint_suffix="",
            consolidate_optimizer=lambda: None,
            get_num_updates=lambda: self.num_updates,
            state_dict=lambda: {"model": {"weight": self.weight}, "extra_state": {}},
        )
        self.trainer.save_checkpoint = lambda *args: Trainer.save_checkpoint(self.trainer, *args)

    def update(self) -> None:
        """Change the weight in place, as an optimizer does."""
        self.num_updates += 1
        self.weight.fill_(self.num_updates)

    def save(self, loss: float | None = None, ends_epoch: bool = False) -> None:
        epoch = SimpleNamespace(
            epoch=1 + self.num_updates // 4,
            end_of_epoch=lambda: ends_epoch,
            state_dict=lambda: {"epoch": 1},
        )
        checkpoint_utils.save_checkpoint(self.cfg, self.trainer, epoch, loss)

    def finish(self) -> None:
        checkpoint_saving.finish(self.num_updates)

    @property
    def files(self) -> dict[str, float]:
        """The weight in each checkpoint."""
        return {
            path.name: float(torch.load(path, weights_only=True)["model"]["weight"][0])
            for path in sorted(self.folder.glob("*.pt"))
        }


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Let no file be written before this event is set."""
    opened, write = threading.Event(), checkpoint_saving._write

    def wait_and_write(state: Any, filename: str) -> None:
        assert opened.wait(WAIT_S)
        write(state, filename)

    monkeypatch.setattr(checkpoint_saving, "_write", wait_and_write)
    yield opened
    opened.set()


def fail_to_write(monkeypatch: pytest.MonkeyPatch, after_s: float = 0.0) -> None:
    def write(state: Any, filename: str) -> None:
        time.sleep(after_s)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint_saving, "_write", write)


# --- the state and the files --------------------------------------------------------------------


def test_update_is_not_held_up_and_does_not_change_what_is_saved(
    tmp_path: Path, gate: threading.Event
) -> None:
    run = Run(tmp_path)
    run.update()
    run.save()
    run.update()
    assert run.files == {}
    gate.set()
    run.finish()
    assert run.files == {"checkpoint_last.pt": 1}


def test_next_save_waits_for_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events, write = [], checkpoint_saving._write

    def write_slowly(state: Any, filename: str) -> None:
        events.append("begin")
        time.sleep(SLOW_S)
        write(state, filename)
        events.append("end")

    monkeypatch.setattr(checkpoint_saving, "_write", write_slowly)
    run = Run(tmp_path)
    for _ in range(3):
        run.update()
        run.save()
    run.finish()
    assert events == ["begin", "end"] * 3
    assert run.files == {"checkpoint_last.pt": 3}


# Per update: the loss of a validation, and if an epoch ends.
SAVES = [(None, False), (0.5, False), (0.4, False), (None, True), (0.45, False), (0.2, True)]
SAVES += [(0.3, False), (0.6, False), (0.1, False), (0.7, True), (0.05, True), (None, True)]


@pytest.mark.parametrize(
    "settings",
    [
        {"save_interval_updates": 1, "keep_interval_updates": 2, "no_epoch_checkpoints": True},
        {
            "save_interval_updates": 1,
            "keep_interval_updates": 1,
            "keep_interval_updates_pattern": 3,
        },
        {"keep_last_epochs": 1, "maximize_best_checkpoint_metric": True},
        {"keep_best_checkpoints": 2, "no_last_checkpoints": True},
    ],
)
def test_names_and_removed_files_are_those_without_it(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    runs = [Run(tmp_path / name, name == "later", **settings) for name in ("at_once", "later")]
    seen = []
    for run in runs:
        forget_the_best()
        run.folder.mkdir()
        after = []
        for loss, ends_epoch in SAVES:
            run.update()
            run.save(loss, ends_epoch)
            run.finish()
            after.append(run.files)
        seen.append(after)
    assert seen[0] == seen[1]
    assert len(seen[0][-1]) > 1
    assert {name for files in seen[0] for name in files} > seen[0][-1].keys()  # some are removed
    assert (tmp_path / "later" / checkpoint_saving.NOTE).read_text() == '{"num_updates": 12}\n'


def test_old_file_is_removed_after_the_new_one_is_written(
    tmp_path: Path, gate: threading.Event
) -> None:
    keep = {"save_interval_updates": 1, "keep_interval_updates": 1, "no_last_checkpoints": True}
    run = Run(tmp_path, **keep)
    gate.set()
    run.update()
    run.save()
    run.finish()
    gate.clear()
    run.update()
    run.save()
    assert run.files == {"checkpoint_1_1.pt": 1}
    gate.set()
    run.finish()
    assert run.files == {"checkpoint_1_2.pt": 2}


def test_copy_of_a_state_shares_nothing_with_it() -> None:
    state = {
        "half": torch.ones(2, dtype=torch.bfloat16),
        "list": [torch.zeros(()), 1],
        "none": None,
    }
    copy = copy_to_host(state)
    state["list"][0].fill_(5)
    state["list"].append(2)
    assert copy["list"] == [torch.zeros(()), 1]
    assert copy["half"].dtype == torch.float32  # as fairseq saves it
    assert copy["none"] is None


# --- errors -------------------------------------------------------------------------------------


def test_jobs_after_one_that_failed_are_not_done() -> None:
    jobs, done = Writer(), []

    def fail() -> None:
        raise KeyError("a bug")

    jobs.start([lambda: done.append(1), fail, lambda: done.append(2)])
    error = jobs.wait()
    assert isinstance(error, KeyError)
    assert done == [1]
    assert not jobs.is_started
    jobs.start([])
    assert jobs.wait() is None


def test_failed_save_is_raised_by_the_next_one_and_leaves_the_file_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path)
    run.update()
    run.save()
    run.finish()
    fail_to_write(monkeypatch)
    run.update()
    run.save()
    run.update()
    with pytest.raises(ValueError, match=r"^ended at update 3: .*not saved \(no space left on"):
        run.save()
    assert run.files == {"checkpoint_last.pt": 1}
    run.finish()


def test_failed_save_ends_training_after_the_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All ranks then save, which raises the error."""
    logs: list[dict[str, Any]] = []
    monkeypatch.setattr(FairseqTask, "train_step", lambda *_, **__: (torch.zeros(()), 1, {}))

    def stops() -> bool:
        _, _, log = InterruptibleTask.train_step(InterruptibleTask(None), {})
        logs.append(log)
        return bool(log["stop_requested"])

    run = Run(tmp_path)
    assert not stops()
    fail_to_write(monkeypatch)
    run.save()
    deadline = time.monotonic() + WAIT_S
    while not writer.has_failed:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert stops()
    with pytest.raises(ValueError, match="not saved"):
        run.finish()
    assert not stops()


# --- training -----------------------------------------------------------------------------------

# Two updates per epoch, validated after each epoch.
EPOCHS = (
    *("dataset.batch_size=2", "dataset.num_workers=0", "dataset.validate_interval=1"),
    *("task.save_in_background=true", "common.tensorboard_logdir=null"),
)


@pytest.fixture(scope="module")
def four_clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("four")
    write_clips(folder, "train", [1.0, 1.1, 1.2, 1.3])
    write_clips(folder, "valid", [1.0, 1.1], first_seed=10)
    return folder


def test_training_saves_the_states_of_one_that_waits(
    train_here: Train, four_clips: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Resumed within an epoch from a checkpoint that was written in the background."""
    saves = ("checkpoint.save_interval_updates=1", "checkpoint.keep_interval_updates=3")
    run = (*EPOCHS, *saves, "lr_scheduler.total_num_update=9")
    updates = []
    for save_dir, in_background in (("later", True), ("at_once", False)):
        own = (f"checkpoint.save_dir={save_dir}", f"task.save_in_background={in_background}")
        for limit in (3, 5):
            updates += train_here(four_clips, *run, *own, f"optimization.max_update={limit}")
            assert f"update {limit}: saved checkpoint_" in caplog.text
    assert [line["num_updates"] for line in updates] == list("12345") * 2
    names = [sorted(os.listdir(tmp_path / save_dir)) for save_dir in ("later", "at_once")]
    assert names[0] == names[1]
    for name in names[0]:
        if not name.endswith(".pt"):
            continue
        later, at_once = (
            torch.load(tmp_path / folder / name, weights_only=True)
            for folder in ("later", "at_once")
        )
        assert later["optimizer_history"] == at_once["optimizer_history"]
        for key in ("model", "last_optimizer_state"):
            torch.testing.assert_close(later[key], at_once[key], rtol=0, atol=0, msg=name)


@pytest.mark.parametrize(
    ("overrides", "ends_at"),
    [
        (["optimization.max_update=2", "checkpoint.save_interval=9"], 2),
        (["optimization.max_epoch=1"], 2),
        (["optimization.max_update=6", "optimization.stop_min_lr=0.00009"], 2),
        (["optimization.lr=[0.0]", "model.input_stats=fixed", "checkpoint.patience=1"], 4),
        (["checkpoint.save_interval=9", "checkpoint.patience=-1"], 3),  # a stop request
    ],
    ids=["max_update", "max_epoch", "stop_min_lr", "patience", "signal"],
)
def test_training_ends_with_the_error_of_its_last_save(
    train_here: Train,
    four_clips: Path,
    monkeypatch: pytest.MonkeyPatch,
    overrides: list[str],
    ends_at: int,
) -> None:
    """The save fails when training has ended, but for waiting for it."""
    fail_to_write(monkeypatch, SLOW_S)
    if ends_at == 3:
        monkeypatch.setattr(stop_request, "is_requested", requested_at(3))
    with pytest.raises(SystemExit) as end:
        train_here(four_clips, *EPOCHS, "lr_scheduler.warmup_updates=0", *overrides)
    text = str(end.value.code)
    assert text.startswith(f"mae-ast: error: ended at update {ends_at}: ")
    assert "not saved (no space left on device" in text
    assert "\n" not in text
