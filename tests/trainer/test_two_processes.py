"""Two processes equal one that takes two batches per update (gloo, on the CPU)."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from mae_ast.core.models.config import MaeAstConfig
from mae_ast.hub import export
from mae_ast.hub.load import PretrainedMaeAst
from mae_ast.trainer.metrics_log import read_metrics
from mae_ast.trainer.run_record import STARTS_FILE
from mae_ast.trainer.stop_request import SAVING

from .conftest import (
    LAUNCHER,
    ONLY_TRAINING,
    VALUES,
    WITH_TENSORBOARD,
    WITHOUT_DROPOUT,
    Start,
    Training,
)
from .ranks import TWO, free_port, start_ranks
from .test_preemption import assert_no_process_is_left

Train = Callable[..., list[dict[str, str]]]
Values = dict[int, dict[str, str]]

STOPS = int(os.environ.get("MAE_AST_TEST_STOPS", "3"))  # interruptions of a run
EPOCHS = max(5, 2 * STOPS)
# 26 clips make 7 batches and 4 updates per epoch: in the last update, rank 1 has no batch.
CLIPS, UPDATES = 26, 4
RUN = (
    "dataset.num_workers=1",
    "dataset.validate_interval=1",
    "dataset.validate_interval_updates=2",
    "model.input_stats=batch",
    f"optimization.max_update={UPDATES * EPOCHS}",
    *WITHOUT_DROPOUT,
)


@pytest.fixture(scope="module")
def ranks_and_one(corpus: Path, start_for_all: Start) -> tuple[list[Training], Training]:
    """Train on two processes, rank 0 of which logs feature metrics, and on one."""
    run = (*RUN, "checkpoint.no_save=true")
    ranks = start_ranks(start_for_all, corpus, *run, "task.probe_interval_updates=8", out="ranks")
    one = start_for_all(corpus, *run, "optimization.update_freq=[2]", out="one")
    return [rank.finish() for rank in ranks], one.finish()


def assert_alike(one: Values, other: Values, keys: Sequence[str]) -> None:
    """Compare values up to float32 rounding, since processes sum in another order."""
    assert one.keys() == other.keys()
    for number, values in one.items():
        for key in keys:
            expected = pytest.approx(float(values[key]), rel=2e-6)
            assert float(other[number][key]) == expected, f"{key} of {number}"


def test_only_rank_0_logs_feature_metrics(
    ranks_and_one: tuple[list[Training], Training],
) -> None:
    (first, second), one = ranks_and_one
    updates = [line["num_updates"] for line in first.stats("health")]
    assert updates == list(range(8, UPDATES * EPOCHS + 1, 8))
    assert all(1 < line["rank_me"] < 5 for line in first.stats("health"))
    assert not second.stats("health")
    assert not one.stats("health")


def test_only_rank_0_writes_metrics_and_the_record_of_the_start(
    ranks_and_one: tuple[list[Training], Training],
) -> None:
    (first, _), one = ranks_and_one
    for run, command, processes in (
        (first, "mae_ast/launch.py", 2),
        (one, "bin/fairseq-hydra-train", 1),
    ):
        assert run.folder is not None
        updates = [
            line["num_updates"]
            for line in read_metrics(run.folder)
            if line["kind"] == "train_inner"
        ]
        assert updates == sorted(run.updates)
        (start,) = map(json.loads, (run.folder / STARTS_FILE).read_text().splitlines())
        assert command in start["command"]
        assert "model.input_stats=batch" in start["command"]
        assert start["folder"] == str(run.folder.parent)
        assert start["processes"] == processes


def test_two_processes_log_the_values_of_one(
    ranks_and_one: tuple[list[Training], Training],
) -> None:
    ranks, one = ranks_and_one
    assert sorted(one.updates) == list(range(1, UPDATES * EPOCHS + 1))
    assert set(one.updates[1]) == set(VALUES)
    # A process that has run out of batches at the end of an epoch has no effect.
    keys = [key for key in VALUES if key != "mask_ratio"]
    assert_alike(one.updates, ranks[0].updates, keys)
    assert_alike(one.epochs, ranks[0].epochs, keys)
    assert ranks[1].updates == {}  # only rank 0 logs


def test_two_processes_use_each_clip_once_per_epoch(
    ranks_and_one: tuple[list[Training], Training],
) -> None:
    ranks, one = ranks_and_one
    for run in (ranks[0], one):
        epochs = [round(float(stats["train_bsz"]) * UPDATES) for stats in run.stats("train")]
        assert epochs == [CLIPS] * EPOCHS


def test_two_processes_log_the_mask_ratio_of_one(
    ranks_and_one: tuple[list[Training], Training],
) -> None:
    ranks, one = ranks_and_one
    assert_alike(one.updates, ranks[0].updates, ["mask_ratio"])


def validation(run: Training) -> dict[int, str]:
    """Return the loss of each validation by its number of updates."""
    return {int(stats["valid_num_updates"]): stats["valid_loss"] for stats in run.stats("valid")}


def test_two_processes_validate_like_one(ranks_and_one: tuple[list[Training], Training]) -> None:
    """Both track the statistics of all inputs, so the validated model is the saved one."""
    ranks, one = ranks_and_one
    expected = validation(one)
    assert sorted(expected) == list(range(2, UPDATES * EPOCHS + 1, 2))
    for number, loss in validation(ranks[0]).items():
        assert float(loss) == pytest.approx(float(expected[number]), rel=1e-5), number


def stop(ranks: list[Training], number: signal.Signals, which: int) -> None:
    """Signal one of two ranks, or both with SIGUSR1; check that each ends without a traceback."""
    for rank in ranks if which == 2 else ranks[which : which + 1]:
        rank.process.send_signal(number)
    for rank in ranks:
        status = rank.wait()
        if number == signal.SIGKILL and rank is ranks[which]:
            assert status == -signal.SIGKILL  # its data workers may lose a connection to it
            continue
        assert "Traceback" not in rank.output, rank.tail
        if number == signal.SIGUSR1:
            assert status == 0, rank.tail
        else:
            assert status == 1, rank.tail
            assert "another process of this run ended" in rank.errors.splitlines()[-1]


def test_run_stopped_at_random_resumes_bit_exactly(
    corpus: Path, start: Start, ranks_and_one: tuple[list[Training], Training]
) -> None:
    (uninterrupted, _), _ = ranks_and_one
    draw = random.Random(STOPS)
    done, seen, validated = 0, set[int](), dict[int, str]()
    for count in range(STOPS + 1):
        ranks = start_ranks(
            start, corpus, *RUN, "checkpoint.save_interval_updates=2", out="stopped"
        )
        if count < STOPS:
            ranks[0].wait_for_update(done + draw.randint(1, 3))
            number = (signal.SIGUSR1, signal.SIGKILL)[count % 2]
            stop(ranks, number, draw.randrange(3 if number == signal.SIGUSR1 else 2))
        else:
            for rank in ranks:
                rank.finish()
        run = ranks[0]
        for update, values in run.updates.items():
            assert values == uninterrupted.updates[update], f"update {update}"
        assert min(run.updates) <= done + 1
        seen |= set(run.updates)
        validated |= validation(run)
        done = max(seen)
    assert seen == set(uninterrupted.updates)
    assert validated == validation(uninterrupted)
    assert ranks[0].epochs == {epoch: uninterrupted.epochs[epoch] for epoch in ranks[0].epochs}


def test_one_command_starts_two_processes_on_a_cpu(
    corpus: Path, start: Start, ranks_and_one: tuple[list[Training], Training]
) -> None:
    """Ctrl-C reaches all processes and stops the run; torchrun resumes it.

    Plots of validation clips, which only rank 0 draws, have no effect on training.
    """
    (uninterrupted, _), _ = ranks_and_one
    first = start(corpus, *RUN, TWO, WITH_TENSORBOARD, out="run", program=LAUNCHER)
    first.wait_for_update(UPDATES + 1)
    first.signal_group(signal.SIGINT)
    first.finish()
    assert first.errors.splitlines().count(SAVING) == 1
    assert_no_process_is_left(first)
    assert len(list(Path(first.log.parent, "run", "tblog", "pictures").iterdir())) == 1
    assert UPDATES < max(first.updates) < UPDATES * EPOCHS
    torchrun = Path(sys.executable).with_name("torchrun")
    program = (str(torchrun), "--nproc-per-node=2", f"--master-port={free_port()}", "--no-python")
    second = start(corpus, *RUN, TWO, out="run", program=(*program, *LAUNCHER)).finish()
    assert min(second.updates) == max(first.updates) + 1
    assert first.updates | second.updates == uninterrupted.updates
    assert validation(first) | validation(second) == validation(uninterrupted)
    for run in (first, second):
        assert "Traceback" not in run.output


def test_two_processes_start_from_weights(corpus: Path, start: Start, train_here: Train) -> None:
    """They equal one process that takes two batches per update."""
    weights = Path("released.pt").resolve()  # in the test's own folder
    config = MaeAstConfig(
        encoder_layers=2,
        encoder_embed_dim=64,
        encoder_ffn_embed_dim=128,
        encoder_attention_heads=4,
        decoder_layers=1,
        decoder_embed_dim=64,
    )
    export.to_released_file(PretrainedMaeAst(config, "chunk_mask"), weights)
    run = (
        *RUN,
        *ONLY_TRAINING,
        "optimization.max_update=2",
        f"checkpoint.finetune_from_model={weights}",
    )
    first, _ = (rank.finish() for rank in start_ranks(start, corpus, *run, out="ranks"))
    one = train_here(corpus, *run, "optimization.update_freq=[2]")
    assert [stats["num_updates"] for stats in one] == ["1", "2"]
    values = {int(s["num_updates"]): {key: s[key] for key in VALUES} for s in one}
    assert_alike(values, first.updates, VALUES)


def test_unused_head_and_signal_to_one_rank_do_not_block(corpus: Path, start: Start) -> None:
    """A head that no loss uses blocks no rank; a signal to one rank ends both."""
    ranks = start_ranks(
        start,
        corpus,
        *RUN,
        *ONLY_TRAINING,
        "criterion.classification_weight=0",
        "optimization.max_update=100000",
        "checkpoint.no_save=false",
        out="ranks",
    )
    ranks[0].wait_for_update(9)
    ranks[1].process.send_signal(signal.SIGTERM)
    for rank in ranks:
        rank.finish()
    for values in ranks[0].updates.values():
        assert float(values["loss"]) == pytest.approx(10 * float(values["mse"]), rel=1e-4)
        assert "info_nce" not in values
    checkpoint = ranks[0].log.parent / "ranks" / "checkpoints" / "checkpoint_last.pt"
    state = torch.load(checkpoint, weights_only=True)
    assert state["optimizer_history"][-1]["num_updates"] == max(ranks[0].updates)
