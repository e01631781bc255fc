"""A run that is killed or signalled and resumed equals an uninterrupted run, digit for digit."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from mae_ast import plugin

from .conftest import ONLY_TRAINING, Start, Training

MAX_UPDATE = 24
RUN = (
    f"optimization.max_update={MAX_UPDATE}",
    "checkpoint.save_interval_updates=5",
    "dataset.num_workers=2",
    "model.dropout=0.1",
    "model.attention_dropout=0.1",
    "model.dropout_input=0.1",
    "model.encoder_layerdrop=0.3",
    "task.random_crop=true",
    "model.input_stats=batch",
)

# Ends the program while it writes a file: the n-th time a file of this name is opened for writing,
# a resource limit makes the kernel end the process at the first byte past the limit. As with
# SIGKILL, no more Python code runs.
DIE_AFTER_BYTES = 1_000_000
DIE_WRITING = f"""
import os, resource, signal, sys

name, _, count = os.environ["DIE_WRITING"].partition(":")
left = int(count)

def watch(event, arguments):
    global left
    if event != "open" or not isinstance(arguments[0], (str, os.PathLike)):
        return
    path, mode, _ = arguments
    if "w" in (mode or "") and os.path.basename(os.fspath(path)).startswith(name):
        left -= 1
        if left == 0:
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, ({DIE_AFTER_BYTES}, resource.RLIM_INFINITY))

sys.addaudithook(watch)
"""


def assert_same(runs: list[Training], uninterrupted: Training) -> None:
    """Check that the parts together logged what the uninterrupted run logged."""
    uninterrupted.finish()
    assert sorted(uninterrupted.updates) == list(range(1, MAX_UPDATE + 1))
    assert len(uninterrupted.epochs) >= 3
    seen: set[int] = set()
    for run in runs:
        for update, values in run.updates.items():
            assert values == uninterrupted.updates[update], f"update {update}"
        seen |= set(run.updates)
    assert seen == set(uninterrupted.updates)
    # Including the averages of an interrupted epoch.
    last = runs[-1]
    assert last.epochs == {epoch: uninterrupted.epochs[epoch] for epoch in last.epochs}
    assert last.stats("valid")[-1]["valid_loss"] == uninterrupted.stats("valid")[-1]["valid_loss"]


def last_saved(checkpoints: Path) -> int:
    """Return the number of updates of ``checkpoint_last.pt``."""
    state = torch.load(checkpoints / "checkpoint_last.pt", weights_only=True)
    return int(state["optimizer_history"][-1]["num_updates"])


def assert_no_process_is_left(run: Training) -> None:
    """Check that the data workers end after their trainer."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        try:
            os.killpg(run.process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    raise AssertionError("data workers outlive their trainer")


def killed_runs(corpus: Path, start: Start, folder: Path) -> list[Training]:
    """Start runs that die in three ways, one after the other, and one that finishes."""
    hook = folder / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(DIE_WRITING)
    runs = []

    def run(**environment: str) -> Training:
        runs.append(start(corpus, *RUN, out="killed", **environment))
        return runs[-1]

    def run_that_dies_writing(name_and_count: str) -> Training:
        return run(PYTHONPATH=str(hook), DIE_WRITING=name_and_count)

    # Checkpoints are saved after updates 5, 7 (the end of an epoch), 10, 14, 15, ... First die
    # while writing checkpoint_last.pt at update 14, the end of an epoch, where the state has no
    # other name; the previous file stays complete.
    first = run_that_dies_writing("checkpoint_last.pt:2")
    checkpoints = first.log.parent / "killed" / "checkpoints"
    assert first.wait() == -signal.SIGXFSZ, first.tail
    assert (checkpoints / "checkpoint_last.pt.tmp").stat().st_size == DIE_AFTER_BYTES
    assert (checkpoints / "checkpoint_2_10.pt").exists()
    assert last_saved(checkpoints) == 10
    assert_no_process_is_left(first)

    # While writing a file that is named by its number of updates.
    second = run_that_dies_writing("checkpoint_3_15.pt:1")
    assert second.wait() == -signal.SIGXFSZ, second.tail
    assert min(second.updates) == 11
    assert not (checkpoints / "checkpoint_last.pt.tmp").exists()
    assert (checkpoints / "checkpoint_3_15.pt.tmp").stat().st_size == DIE_AFTER_BYTES
    assert last_saved(checkpoints) == 14

    # Between two saves.
    third = run()
    third.wait_for_update(17)
    third.process.kill()
    assert third.wait() == -signal.SIGKILL
    assert min(third.updates) == 15
    assert 17 <= max(third.updates) < MAX_UPDATE
    assert_no_process_is_left(third)

    # Without checkpoint_last.pt, training resumes from an earlier checkpoint and repeats updates.
    (checkpoints / "checkpoint_last.pt").unlink()
    last = run().finish()
    assert min(last.updates) in (16, 21, 22)  # depends on when the kill came
    assert "checkpoint_last.pt: no such file; resuming from checkpoint_" in last.output
    return runs


def signalled_runs(corpus: Path, start: Start) -> list[Training]:
    """Start runs that are signalled, one after the other, and one that finishes."""
    runs: list[Training] = []
    for number, update in ((signal.SIGUSR1, 5), (signal.SIGTERM, 10), (signal.SIGINT, 15)):
        run = start(corpus, *RUN, out="signalled")
        run.wait_for_update(update)
        # A cluster signals all processes of a job, including the data workers.
        run.signal_group(number)
        run.finish()
        done = max(run.updates)
        assert update <= done < MAX_UPDATE
        assert last_saved(run.log.parent / "signalled" / "checkpoints") == done
        assert f"update {done}: saved and exited on a signal" in run.output
        assert "Traceback" not in run.output
        assert_no_process_is_left(run)
        runs.append(run)
    runs.append(start(corpus, *RUN, out="signalled").finish())
    for before, after in itertools.pairwise(runs):
        assert min(after.updates) == max(before.updates) + 1
    return runs


@dataclass(frozen=True)
class Histories:
    """Uninterrupted, killed and signalled runs of the same training."""

    uninterrupted: Training
    killed: Future[list[Training]]
    signalled: Future[list[Training]]


@pytest.fixture(scope="module")
def histories(
    corpus: Path, start_for_all: Start, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Histories]:
    """Train three times at once: uninterrupted, killed, signalled."""
    folder = tmp_path_factory.mktemp("hook")
    with ThreadPoolExecutor() as pool:
        yield Histories(
            start_for_all(corpus, *RUN, out="uninterrupted"),
            pool.submit(killed_runs, corpus, start_for_all, folder),
            pool.submit(signalled_runs, corpus, start_for_all),
        )


def test_resumes_bit_exactly_after_a_kill(histories: Histories) -> None:
    assert_same(histories.killed.result(), histories.uninterrupted)


def test_saves_on_a_signal_and_resumes_bit_exactly(histories: Histories) -> None:
    assert_same(histories.signalled.result(), histories.uninterrupted)


@pytest.fixture(scope="module")
def forty_updates(corpus: Path, start_for_all: Start) -> Training:
    """Train for 40 updates with 2 data workers."""
    options = ("optimization.max_update=40", "dataset.num_workers=2", *ONLY_TRAINING)
    return start_for_all(corpus, *options, out="forty").finish()


def test_updates_are_complete_over_many_epochs(forty_updates: Training) -> None:
    assert sorted(forty_updates.updates) == list(range(1, 41))
    assert len(forty_updates.epochs) >= 5


def test_data_workers_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the garbage collector ends a data loader, torch waits 5 s for each worker by default."""
    plugin.register()
    join, limits = BaseProcess.join, []

    def join_and_record(process: BaseProcess, timeout: float | None = None) -> None:
        limits.append(timeout)
        join(process, timeout)

    gc.collect()  # loaders of other tests
    loader = iter(DataLoader(range(8), num_workers=2))  # type: ignore[arg-type]
    next(loader)
    monkeypatch.setattr(BaseProcess, "join", join_and_record)
    del loader
    gc.collect()
    assert limits == [0.05, 0.05]


def test_data_workers_leave_no_files(forty_updates: Training) -> None:
    assert not list(Path(forty_updates.temporary.name).glob("pymp-*"))
