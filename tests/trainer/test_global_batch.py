"""A run resumes on another number of processes with the same updates (gloo, on the CPU)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq.data.iterators import EpochBatchIterator, GroupedIterator
from omegaconf import OmegaConf

from mae_ast.core.frontend.input_norm import InputNorm
from mae_ast.trainer import global_batch
from mae_ast.trainer.fairseq_patches import distributed
from mae_ast.trainer.global_batch import Division, translate, update_freq

from .conftest import FORKED_RANKS, LAUNCHER, VALUES, WITHOUT_DROPOUT, Start, Training
from .ranks import free_port

# 26 batches of one clip make 4 updates of an epoch, the last one of 2 batches.
CLIPS, BATCHES, UPDATES = 26, 8, 4
RUN = (
    "dataset.batch_size=1",
    "dataset.num_workers=0",
    "dataset.disable_validation=true",
    "model.input_stats=batch",
    "lr_scheduler.warmup_updates=1",
    "lr_scheduler.total_num_update=100",
    f"task.batches_per_update={BATCHES}",
    *WITHOUT_DROPOUT,
)


# --- the order of batches -----------------------------------------------------------------------


def updates_of(rank: int, division: Division, position: int = 0) -> list[list[list[int]]]:
    """Return the batches of each update of an epoch that fairseq gives to a rank."""
    epoch = EpochBatchIterator(
        torch.utils.data.TensorDataset(torch.arange(CLIPS)),
        collate_fn=lambda items: [int(item[0]) for item in items],
        batch_sampler=[[clip] for clip in range(CLIPS)],
        num_shards=division.ranks,
        shard_id=rank,
    )
    epoch.load_state_dict({"version": 2, "epoch": 3, "iterations_in_epoch": position})
    return list(GroupedIterator(epoch.next_epoch_itr(), division.update_freq))


def clips_of(division: Division, position: int = 0) -> list[list[int]]:
    """Return the clips of each update, in the order of a single process."""
    ranks = [updates_of(rank, division, position) for rank in range(division.ranks)]
    assert len({len(updates) for updates in ranks}) == 1  # else a rank waits for the others
    return [
        [clip for batches in zip(*update, strict=True) for batch in batches for clip in batch]
        for update in zip(*ranks, strict=True)
    ]


@pytest.mark.parametrize("done", range(UPDATES))
def test_updates_do_not_depend_on_the_number_of_ranks(done: int) -> None:
    one = clips_of(Division(1, BATCHES))
    assert sorted(clip for update in one for clip in update) == list(range(CLIPS))
    assert one != [list(range(8)), list(range(8, 16)), list(range(16, 24)), [24, 25]]  # shuffled
    assert [len(update) for update in one] == [8, 8, 8, 2]
    before = Division(4, 2)
    for ranks in (1, 2, 4, 8):
        now = Division(ranks, update_freq(BATCHES, ranks))
        position, repeated = translate(done * before.update_freq, before, now)
        assert repeated == 0
        assert clips_of(now, position) == one[done:], f"{ranks} ranks from update {done}"


def test_update_that_has_another_size_begins_with_an_update_of_that_size() -> None:
    """No clip is skipped, and at most those of an update are repeated."""
    assert translate(3, Division(4, 1), Division(4, 2)) == (2, 4)
    assert translate(2, Division(4, 2), Division(2, 2)) == (4, 0)
    assert translate(5, Division(3, 1), Division(2, 1)) == (7, 1)


@pytest.mark.parametrize(
    ("batches", "ranks", "valid"),
    [
        (12, 8, "use 8 or 16, or 3, 4, 6 or 12 processes"),
        (1, 2, "use 2, or 1 process"),
        (0, 4, "use 4"),
    ],
)
def test_batches_that_cannot_be_divided_are_refused(batches: int, ranks: int, valid: str) -> None:
    with pytest.raises(ValueError, match=rf"={batches}: not divisible by {ranks} .*; {valid}$"):
        update_freq(batches, ranks)


def settings(**task: Any) -> Any:
    return OmegaConf.create(
        {
            "task": task,
            "dataset": {"grouped_shuffling": False},
            "optimization": {"update_freq": [3]},
            "distributed_training": {"distributed_world_size": 4, "distributed_init_method": None},
        }
    )


def test_update_freq_follows_from_the_ranks_of_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = settings(batches_per_update=8)
    global_batch.set_update_freq(cfg, distributed.num_ranks(cfg.distributed_training))
    assert cfg.optimization.update_freq == [2]
    for key in ("MASTER_ADDR", "MASTER_PORT", "RANK"):
        monkeypatch.setenv(key, "0")
    monkeypatch.setenv("WORLD_SIZE", "8")
    global_batch.set_update_freq(cfg, distributed.num_ranks(cfg.distributed_training))
    assert cfg.optimization.update_freq == [1]
    for untouched in (settings(batches_per_update=None), settings()):
        global_batch.set_update_freq(untouched, 4)
        assert untouched.optimization.update_freq == [3]
    cfg.dataset.grouped_shuffling = True
    with pytest.raises(ValueError, match=r"dataset\.grouped_shuffling=true .*set it to false"):
        global_batch.set_update_freq(cfg, 8)


def test_another_number_of_batches_is_warned_of() -> None:
    saved = settings()
    state = {
        "cfg": OmegaConf.to_container(saved),
        "extra_state": {"train_iterator": {"epoch": 2, "iterations_in_epoch": 6}},
    }
    now = settings()
    now.distributed_training.distributed_world_size = 2
    assert global_batch.resume(state, saved) is None
    assert global_batch.resume(state, now) == (
        "an update has 6 batches (2 processes x 3) from now on, and had 12 batches "
        "(4 processes x 3) before; task.batches_per_update=12 keeps the number"
    )
    assert state["extra_state"]["train_iterator"]["iterations_in_epoch"] == 12
    again = {"cfg": now, "extra_state": {"train_iterator": {"epoch": 1, "iterations_in_epoch": 3}}}
    warning = global_batch.resume(again, saved)
    assert warning is not None
    assert warning.endswith("; 6 batches of epoch 1 are read again")
    assert global_batch.resume({"cfg": None, "extra_state": {}}, now) is None


# --- training -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_and_one(corpus: Path, start_for_all: Start) -> tuple[list[Training], Training, Path]:
    """Train on two nodes of two processes each, then on 2 processes, then on 8; and on one.

    The first run ends within an epoch; the second one begins there, and ends within the next epoch.
    """
    one = start_for_all(corpus, *RUN, "optimization.max_update=10", out="one")
    port = free_port()
    torchrun = str(Path(sys.executable).with_name("torchrun"))
    nodes = [
        start_for_all(
            corpus,
            *RUN,
            "distributed_training.distributed_world_size=4",
            "optimization.max_update=2",
            out="run",
            program=(
                *(torchrun, "--nnodes=2", f"--node-rank={node}", "--nproc-per-node=2"),
                *("--master-addr=localhost", f"--master-port={port}", "--no-python", *LAUNCHER),
            ),
        )
        for node in range(2)
    ]
    first, _ = (node.finish() for node in nodes)
    runs = [first]
    for ranks, last in ((2, 6), (8, 10)):
        world = f"distributed_training.distributed_world_size={ranks}"
        limit = f"optimization.max_update={last}"
        run = start_for_all(corpus, *RUN, world, limit, out="run", program=FORKED_RANKS)
        runs.append(run.finish())
    return runs, one.finish(), first.log.parent


def test_run_on_4_and_2_and_8_processes_logs_the_values_of_one(
    run_and_one: tuple[list[Training], Training, Path],
) -> None:
    runs, one, _ = run_and_one
    assert [sorted(run.updates) for run in runs] == [[1, 2], [3, 4, 5, 6], [7, 8, 9, 10]]
    assert sorted(one.updates) == list(range(1, 11))
    for run in runs:
        for number, values in run.updates.items():
            for key in VALUES:
                expected = pytest.approx(float(one.updates[number][key]), rel=1e-4)
                assert float(values[key]) == expected, f"{key} of update {number}"
        assert "Traceback" not in run.output
        assert "[WARNING]" not in run.output


def test_run_on_4_and_2_and_8_processes_uses_each_clip_once_per_epoch(
    run_and_one: tuple[list[Training], Training, Path],
) -> None:
    runs, one, _ = run_and_one  # a run that resumes within an epoch has the means of all of it
    for epochs in ([each for run in runs for each in run.stats("train")], one.stats("train")):
        whole = {
            int(stats["epoch"]): round(float(stats["train_bsz"]) * UPDATES)
            for stats in epochs
            if int(stats["train_num_updates"]) % UPDATES == 0
        }
        assert whole == {1: CLIPS, 2: CLIPS}


def test_run_on_4_and_2_and_8_processes_ends_with_the_weights_and_statistics_of_one(
    run_and_one: tuple[list[Training], Training, Path],
) -> None:
    _, _, folder = run_and_one
    run, one = (
        torch.load(folder / out / "checkpoints" / "checkpoint_last.pt", weights_only=True)["model"]
        for out in ("run", "one")
    )
    assert run.keys() == one.keys()
    for name, value in one.items():
        torch.testing.assert_close(run[name], value, rtol=1e-4, atol=1e-6, msg=name)
    initial = InputNorm().running_mean
    assert not torch.allclose(one["batch_norm.running_mean"], initial)
    assert int(one["batch_norm.num_batches_tracked"]) == 2 * CLIPS + 2 * BATCHES


def test_batches_that_cannot_be_divided_end_a_training_in_one_line(
    train_here: Callable[..., Any], corpus: Path
) -> None:
    with pytest.raises(SystemExit) as end:
        train_here(corpus, "distributed_training.distributed_world_size=3", *RUN)
    assert str(end.value.code) == (
        "mae-ast: error: task.batches_per_update=8: not divisible by 3 processes; "
        "use 6 or 9, or 1, 2, 4 or 8 processes"
    )
