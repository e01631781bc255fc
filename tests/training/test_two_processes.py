"""Two processes train as one does that takes two batches a step (gloo, on the CPU)."""

from __future__ import annotations

import signal
import socket
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from .conftest import ONLY_TRAINING, VALUES, WITHOUT_DROPOUT, Start, Training

Values = dict[int, dict[str, str]]

# 26 clips make 7 batches an epoch: at its end the second process has none.
RUN = (
    "dataset.num_workers=1",
    "model.input_stats=fixed",
    "model.input_mean=-6",
    "model.input_std=4",
    *WITHOUT_DROPOUT,
    *ONLY_TRAINING,
)


def two_processes(start: Start, corpus: Path, name: str, *overrides: str) -> list[Training]:
    """One command for each rank, both at once."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return [
        start(
            corpus,
            *RUN,
            "distributed_training.distributed_world_size=2",
            f"distributed_training.distributed_rank={rank}",
            "distributed_training.distributed_no_spawn=true",
            f"distributed_training.distributed_init_method=tcp://localhost:{port}",
            "distributed_training.distributed_backend=gloo",
            "distributed_training.ddp_backend=legacy_ddp",
            *overrides,
            out=f"{name}_{rank}",
        )
        for rank in range(2)
    ]


@pytest.fixture(scope="module")
def ranks_and_one(corpus: Path, start_for_all: Start) -> tuple[list[Training], Training]:
    """Two processes, the first of which looks at its features, and one that does the same."""
    max_update = "optimization.max_update=20"
    looked = "task.probe_interval_updates=8"
    ranks = two_processes(start_for_all, corpus, "rank", max_update, looked)
    one = start_for_all(corpus, *RUN, max_update, "optimization.update_freq=[2]", out="one")
    return [rank.finish() for rank in ranks], one.finish()


def assert_alike(one: Values, other: Values, keys: Sequence[str]) -> None:
    """To what is left of float32 where processes add up in another order."""
    assert one.keys() == other.keys()
    for number, values in one.items():
        for key in keys:
            expected = pytest.approx(float(values[key]), rel=2e-6)
            assert float(other[number][key]) == expected, f"{key} of {number}"


def test_the_first_process_alone_looks_at_the_features(
    ranks_and_one: tuple[list[Training], Training],
) -> None:
    (first, second), one = ranks_and_one
    assert [line["num_updates"] for line in first.stats("health")] == [8, 16]
    assert all(1 < line["rank_me"] < 5 for line in first.stats("health"))
    assert not second.stats("health")
    assert not one.stats("health")


def test_two_processes_print_what_one_prints(
    ranks_and_one: tuple[list[Training], Training],
) -> None:
    ranks, one = ranks_and_one
    assert sorted(one.updates) == list(range(1, 21))
    assert set(one.updates[1]) == set(VALUES)
    # At the end of an epoch, a process that has run out of batches changes nothing.
    keys = [key for key in VALUES if key != "mask_ratio"]
    assert_alike(one.updates, ranks[0].updates, keys)
    assert_alike(one.epochs, ranks[0].epochs, keys)
    assert ranks[1].updates == {}  # only the first process prints


def test_two_processes_take_each_clip_once_an_epoch(
    ranks_and_one: tuple[list[Training], Training],
) -> None:
    ranks, one = ranks_and_one
    for run in (ranks[0], one):
        epochs = [round(float(stats["train_bsz"]) * 4) for stats in run.stats("train")]
        assert epochs == [26] * 5


def test_two_processes_print_the_mask_ratio_of_one(
    ranks_and_one: tuple[list[Training], Training],
) -> None:
    ranks, one = ranks_and_one
    assert_alike(one.updates, ranks[0].updates, ["mask_ratio"])


def test_two_processes_without_classification_end_together(corpus: Path, start: Start) -> None:
    """A head that no loss uses keeps no one waiting; a signal to one process ends both."""
    ranks = two_processes(
        start,
        corpus,
        "rank",
        "criterion.classification_weight=0",
        "optimization.max_update=100000",
        "checkpoint.no_save=false",
    )
    ranks[0].wait_for_update(9)
    ranks[1].process.send_signal(signal.SIGTERM)
    for rank in ranks:
        rank.finish()
    for values in ranks[0].updates.values():
        assert float(values["loss"]) == pytest.approx(10 * float(values["mse"]), rel=1e-4)
        assert "info_nce" not in values
    checkpoint = ranks[0].log.parent / "rank_0" / "checkpoints" / "checkpoint_last.pt"
    state = torch.load(checkpoint, weights_only=True)
    assert state["optimizer_history"][-1]["num_updates"] == max(ranks[0].updates)
    assert not list((ranks[1].log.parent / "rank_1").rglob("*.pt"))
