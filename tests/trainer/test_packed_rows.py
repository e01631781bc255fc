"""Rows of clips (task.batching=packed): how they are made, and how they train."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mae_ast.data.pack_rows import pack_rows

from .conftest import ONLY_TRAINING, WITHOUT_DROPOUT, Start, write_clips
from .ranks import start_ranks
from .test_dataset import _patched_fairseq, batches, task_with  # noqa: F401  (a fixture)
from .test_two_processes import Train, assert_alike, stop

SECONDS = (0.9, 3.1, 1.4, 0.6, 2.2, 1.0, 1.7, 0.8, 2.6, 1.2, 0.7, 1.9, 1.1, 0.5)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Corpus of 14 + 3 clips of 0.5 to 3.1 s."""
    folder = tmp_path_factory.mktemp("mixed")
    write_clips(folder, "train", SECONDS)
    write_clips(folder, "valid", SECONDS[:3], first_seed=100)
    return folder


# --- packing ------------------------------------------------------------------------------------


def steps_like_librispeech(num: int) -> list[int]:
    """Draw lengths in time steps of 160 ms: most of 10 to 16 s, some shorter, up to 35 s."""
    rng = np.random.default_rng(0)
    seconds = np.where(rng.random(num) < 0.7, rng.uniform(10, 16.5, num), rng.uniform(1, 35, num))
    return [int(steps) for steps in seconds / 0.16]


def test_rows_are_full() -> None:
    sizes, capacity = steps_like_librispeech(20_000), 1250  # rows of 200 s
    rows = pack_rows(sizes, capacity, 1000)
    assert sorted(index for row in rows for index in row) == list(range(len(sizes)))
    assert max(sum(sizes[index] for index in row) for row in rows) <= capacity
    assert sum(sizes) / (len(rows) * capacity) > 0.99


def test_rows_have_a_maximum_number_of_clips() -> None:
    assert pack_rows([1] * 7, 100, 3) == [[0, 1, 2], [3, 4, 5], [6]]
    assert pack_rows([60, 50, 40, 50], 100, 9) == [[0, 2], [1, 3]]  # the fullest that has room
    assert pack_rows([], 100, 9) == []


def test_epoch_holds_each_clip_once_and_whole(mixed: Path) -> None:
    task = task_with(mixed, "train", seed=1, batching="packed")
    (first,) = map(rows_of, batches(task, "train", 1, first=1))
    (second,) = map(rows_of, batches(task, "train", 1, first=2, num_workers=2))
    assert sorted(sum(first, ())) == sorted(sum(second, ())) == list(range(len(SECONDS)))
    assert {frozenset(row) for row in first} != {frozenset(row) for row in second}
    assert max(map(len, first)) > 1
    task = task_with(mixed, "train", seed=1, batching="packed")
    (again,) = map(rows_of, batches(task, "train", 1, first=2, num_workers=0))
    assert again == second
    parts: list[tuple[int, ...]] = []
    for shard in range(2):
        task = task_with(mixed, "train", seed=1, batching="packed")
        (part,) = batches(task, "train", 1, first=2, num_shards=2, shard_id=shard)
        parts += rows_of(part)
    assert sorted(filter(None, parts)) == sorted(second)


def test_batches_have_one_shape_and_whole_clips(mixed: Path) -> None:
    task = task_with(mixed, "train", seed=1, batching="packed")
    (epoch,) = batches(task, "train", 1)
    assert len({batch["net_input"]["source"].shape for batch in epoch}) == 1
    assert sum(batch["num_samples"] for batch in epoch) == round(sum(SECONDS) * 16_000)
    cropped = task_with(mixed, "train", seed=1, batching="packed", max_sample_size=16_000)
    (epoch,) = batches(cropped, "train", 1)
    samples = sum(batch["num_samples"] for batch in epoch)
    assert samples == round(sum(min(1.0, each) for each in SECONDS) * 16_000)


def rows_of(epoch: list[dict[str, Any]]) -> list[tuple[int, ...]]:
    return [tuple(batch["id"].tolist()) for batch in epoch]


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"pad_audio": True}, "task.pad_audio=true: nothing is padded"),
        ({"mask_type": "random_mask_batched"}, "task.mask_type=random_mask_batched: clips of diff"),
    ],
)
def test_settings_without_meaning_are_refused(
    mixed: Path, settings: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ValueError, match=f"task.batching=packed does not support {problem}"):
        task_with(mixed, "train", seed=1, batching="packed", **settings)


def test_rows_need_their_length(mixed: Path) -> None:
    task = task_with(mixed, "train", seed=1, batching="packed")
    with pytest.raises(ValueError, match=r"task\.batching=packed needs dataset.max_tokens"):
        task.get_batch_iterator(task.dataset("train"), max_sentences=2).next_epoch_itr()


# --- training -----------------------------------------------------------------------------------

# 14 clips make 6 rows and 3 updates per epoch.
RUN = (
    "task.batching=packed",
    "task.min_sample_size=null",
    "task.max_sample_size=null",
    "dataset.num_workers=1",
    "dataset.max_tokens=52000",
    "dataset.validate_interval=1",
    "optimization.max_update=8",
    "model.input_stats=batch",
    *WITHOUT_DROPOUT,
)


def test_two_processes_equal_one_and_resume_within_an_epoch(mixed: Path, start: Start) -> None:
    one = start(mixed, *RUN, "checkpoint.no_save=true", "optimization.update_freq=[2]", out="one")
    one.finish()
    assert len(one.updates) == 8
    first = start_ranks(start, mixed, *RUN, out="ranks")
    first[0].wait_for_update(4)  # of three in an epoch
    stop(first, signal.SIGUSR1, 2)
    assert 4 <= max(first[0].updates) < 8
    second = [rank.finish() for rank in start_ranks(start, mixed, *RUN, out="ranks")]
    assert min(second[0].updates) == max(first[0].updates) + 1
    keys = ("loss", "mse", "info_nce", "gnorm", "mask_ratio")
    assert_alike(one.updates, first[0].updates | second[0].updates, keys)


def test_input_frames_are_refused(mixed: Path, train_here: Callable[..., Any]) -> None:
    with pytest.raises(SystemExit, match=r"does not support model\.input_frames=64: clips keep"):
        train_here(mixed, *RUN, "model.input_frames=64")


def test_compiled_layers_train_alike(mixed: Path, train_here: Train, monkeypatch: Any) -> None:
    """All rows have one shape: layers of one kind are compiled once."""
    import torch

    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile

    def compile_whole(compute: Any) -> Any:
        return compiled(compute, fullgraph=True, dynamic=False, backend=backend)

    run = (*RUN, "dataset.num_workers=0", *ONLY_TRAINING)
    plain = [float(line["loss"]) for line in train_here(mixed, *run)]
    monkeypatch.setattr(torch, "compile", compile_whole)
    found = [float(line["loss"]) for line in train_here(mixed, *run, "model.compile=true")]
    assert found == pytest.approx(plain, rel=1e-5)
    assert len(graphs) == 2  # of the encoder's layers, and of the decoder's
