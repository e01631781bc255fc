"""Trainings of ``mae-ast finetune``: killed or interrupted and resumed, and on two ranks."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from mae_ast.trainer.command import train_command
from mae_ast.trainer.stop_request import SAVING

from .classification import write_corpus, write_pretrained
from .conftest import Training
from .ranks import TWO, free_port, rank_overrides

MAX_UPDATE = 16
RUN = (
    *("common.cpu=true", "common.log_interval=1", "common.tensorboard_logdir=null"),
    # 36 clips give 9 batches, and 5 updates per epoch with two batches in each.
    *("dataset.num_workers=1", "dataset.batch_size=4", "dataset.validate_interval=1"),
    *("task.multi_label=true", "task.balanced=true", "task.mixup=0.5", "task.shift_samples=500"),
    *("task.noise_snr_db=20", "task.max_sample_size=5000", "criterion.label_smoothing=0"),
    "lr_scheduler.warmup_updates=2",
    f"optimization.max_update={MAX_UPDATE}",
)
METRICS = ("valid_loss", "valid_mAP", "valid_mAUC", "valid_d_prime", "valid_best_mAP")


@dataclass(frozen=True)
class Runs:
    whole: Training
    parts: list[Training]  # the first is killed, the second is interrupted by Ctrl-C
    stopped: Training
    ranks: list[Training]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """Run the same training without a stop, with stops, and on two ranks."""
    folder = tmp_path_factory.mktemp("runs")
    data = write_corpus(folder / "data", multi_label=True)
    pretrained = write_pretrained(folder / "tiny.pt")
    running: list[Training] = []

    def start(out: str, *overrides: str) -> Training:
        given = [f"model.checkpoint={pretrained}", *RUN, *overrides]
        command = train_command(data, "demo", folder / out, given, "finetune")
        running.append(Training(command, folder / f"{out}_{len(running)}.log", forked=True))
        return running[-1]

    def start_ranks() -> list[Training]:
        port = free_port()
        return [start("ranks", *rank_overrides(rank, port)) for rank in range(2)]

    try:
        pairs = "optimization.update_freq=[2]"
        whole, killed = start("whole", pairs), start("parts", pairs)
        killed.wait_for_update(7)
        killed.process.kill()
        killed.wait()
        interrupted = start("parts", pairs)
        stopped = start("ranks", TWO)
        for run, update in ((interrupted, 6), (stopped, 3)):
            run.wait_for_update(update)
            run.signal_group(signal.SIGINT)
            run.finish()
        ranks = start_ranks()
        whole.finish()
        parts = [killed, interrupted, start("parts", pairs).finish()]
        yield Runs(whole, parts, stopped, [rank.finish() for rank in ranks])
    finally:
        for run in running:
            run.kill()


def test_resumes_bit_exactly_after_sigkill_and_sigint(runs: Runs) -> None:
    assert sorted(runs.whole.updates) == list(range(1, MAX_UPDATE + 1))
    _, interrupted, last = runs.parts
    assert min(interrupted.updates) == 6  # after the first epoch
    assert min(last.updates) == max(interrupted.updates) + 1
    for run in runs.parts:
        for number, values in run.updates.items():
            assert values == runs.whole.updates[number], number
    for run in (interrupted, runs.stopped):
        assert run.errors.splitlines().count(SAVING) == 1
        assert "Traceback" not in run.output
    whole, resumed = (run.stats("valid") for run in (runs.whole, last))
    assert len(whole) == 4
    for one, other in zip(whole[-len(resumed) :], resumed, strict=True):
        assert {k: one[k] for k in METRICS if k in one} == {
            k: other[k] for k in METRICS if k in other
        }
    assert float(whole[-1]["valid_mAP"]) > 0.3


def test_two_resumed_ranks_match_one_process(runs: Runs) -> None:
    assert runs.ranks[1].updates == {}  # only rank 0 prints
    before, after = runs.stopped, runs.ranks[0]
    assert max(before.updates) + 1 == min(after.updates)
    found = before.updates | after.updates
    for number, values in runs.whole.updates.items():
        for key in ("loss", "gnorm", "lr", "audio_hours"):
            expected = pytest.approx(float(values[key]), rel=2e-5)
            assert float(found[number][key]) == expected, f"{key} of {number}"
    whole, parts = runs.whole.stats("valid"), before.stats("valid") + after.stats("valid")
    assert len(whole) == len(parts)
    for one, other in zip(whole, parts, strict=True):
        for key in METRICS:
            if key in one:
                assert float(other[key]) == pytest.approx(float(one[key]), abs=2e-4), key
