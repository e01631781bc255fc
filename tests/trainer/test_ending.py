"""Training ends cleanly: on a signal, when finished, when it diverges, while prefetching."""

from __future__ import annotations

import itertools
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from mae_ast.trainer import stop_request

from .conftest import SMALL_DECODER, write_clips

Train = Callable[..., list[dict[str, str]]]

PROGRAM = """
import torch
from fairseq.data.iterators import BufferedIterator
from mae_ast.trainer.fairseq_patches import training_loop

torch.set_num_threads(1)
training_loop.apply()


class Batches:
    def __len__(self):
        return 10**9

    def __iter__(self):
        x = torch.randn(700, 700)
        while True:
            y = x
            for _ in range({products}):
                y = x @ x
            yield y


batches = BufferedIterator(2, Batches())
next(batches)
"""


def test_prefetch_thread_does_not_abort_the_program():
    """The thread is inside PyTorch, or waits for free space."""
    for products in (20, 0):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM.replace("{products}", str(products))],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr


# Two updates per epoch, validated after each epoch.
EPOCHS = (
    *("dataset.batch_size=2", "dataset.num_workers=0", "dataset.validate_interval=1"),
    *("optimization.max_update=6", "checkpoint.save_interval=1"),
)


@pytest.fixture(scope="module")
def four_clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("four")
    write_clips(folder, "train", [1.0, 1.1, 1.2, 1.3])
    write_clips(folder, "valid", [1.0, 1.1], first_seed=10)
    return folder


def requested_at(update: int) -> Callable[[], bool]:
    """Return a replacement of ``stop_request.is_requested``: the request comes in ``update``."""
    updates = itertools.count(1)
    return lambda: next(updates) == update


def checkpoint(folder: Path, name: str) -> int:
    """Return the number of updates of a checkpoint."""
    state = torch.load(folder / "checkpoints" / f"checkpoint_{name}.pt", weights_only=True)
    return state["optimizer_history"][-1]["num_updates"]


@pytest.mark.parametrize(("last", "best"), [(3, 2), (4, 4)])
def test_validation_and_saving_that_are_due_precede_the_exit(
    train_here: Train,
    four_clips: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    last: int,
    best: int,
) -> None:
    """The loss falls from one validation to the next, so the last one is the best."""
    monkeypatch.setattr(stop_request, "is_requested", requested_at(last))
    assert len(train_here(four_clips, *EPOCHS)) == last
    assert f"update {last}: saved and exited on a signal" in caplog.text
    assert checkpoint(tmp_path, "last") == last
    assert checkpoint(tmp_path, "best") == best
    monkeypatch.setattr(stop_request, "is_requested", lambda: False)
    assert len(train_here(four_clips, *EPOCHS)) == 6 - last
    assert checkpoint(tmp_path, "last") == 6


def test_restarting_a_finished_run_changes_nothing(
    train_here: Train, four_clips: Path, tmp_path: Path
) -> None:
    assert len(train_here(four_clips, *EPOCHS)) == 6
    files = {path: path.read_bytes() for path in (tmp_path / "checkpoints").iterdir()}
    assert train_here(four_clips, *EPOCHS) == []
    assert {path: path.read_bytes() for path in (tmp_path / "checkpoints").iterdir()} == files
    assert len(train_here(four_clips, *EPOCHS, "optimization.max_update=7")) == 1


@pytest.mark.parametrize("config", ["mae_ast", "ssast_patch", "audio_mae"])
def test_divergence_is_reported(
    train_here: Train, four_clips: Path, caplog: pytest.LogCaptureFixture, config: str
) -> None:
    small_decoder = SMALL_DECODER if config == "audio_mae" else ()
    wild = ("optimization.lr=[1e20]", "lr_scheduler.warmup_updates=1", "optimization.max_update=9")
    with pytest.raises(SystemExit) as end:
        train_here(four_clips, *EPOCHS, *wild, *small_decoder, config=config)
    message = str(end.value.code)
    assert message.startswith("mae-ast: error: training has diverged at update ")
    assert "gradients are not finite" in message
    assert "optimization.lr" in message
    assert any("detected in output of" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize(
    ("norms", "kind"), [((1.0, 2.0), FloatingPointError), ((1.0, math.nan), SystemExit)]
)
def test_ranks_that_disagree_have_not_diverged(
    train_here: Train,
    four_clips: Path,
    monkeypatch: pytest.MonkeyPatch,
    norms: tuple[float, float],
    kind: type[BaseException],
) -> None:
    """fairseq raises the same error for both; the text is its own."""
    table = "\n".join(f"rank {rank:3d} = {norm:.8f}" for rank, norm in enumerate(norms))

    def differ(*_: object) -> None:
        raise FloatingPointError(f"Fatal error: gradients are inconsistent\n{table}")

    monkeypatch.setattr("fairseq.trainer.Trainer._check_grad_norms", differ)
    with pytest.raises(kind):
        train_here(four_clips, *EPOCHS)


@pytest.fixture
def listening(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Return ``stop_request.listen`` with the state of a new process and without a time limit."""
    before = {number: signal.getsignal(number) for number in stop_request.SIGNALS}
    pipe = signal.set_wakeup_fd(-1)
    monkeypatch.setattr(stop_request, "_watch", lambda: None)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.setattr(stop_request, "_pids", {})
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by tests in the background
    for flag in ("_requested", "_alone", "_training", "_launching", "_interrupted", "_counting"):
        monkeypatch.setattr(stop_request, flag, threading.Event())
    yield stop_request.listen
    signal.set_wakeup_fd(pipe)
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", stop_request.SIGNALS)
def test_single_process_ends_at_once_before_the_first_update(
    listening: Callable[[], None], number: signal.Signals
) -> None:
    listening()
    stop_request.trains_alone()
    with pytest.raises(SystemExit) as end:
        signal.raise_signal(number)
    assert end.value.code == 0


def test_signal_during_imports_ends_a_single_process_later(
    listening: Callable[[], None],
) -> None:
    listening()
    signal.raise_signal(signal.SIGTERM)
    assert stop_request.is_requested()
    with pytest.raises(SystemExit) as end:
        stop_request.trains_alone()
    assert end.value.code == 0


def test_update_that_has_begun_is_finished(listening: Callable[[], None]) -> None:
    listening()
    stop_request.trains_alone()
    stop_request.begin_update()
    signal.raise_signal(signal.SIGTERM)
    assert stop_request.is_requested()


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Signals that the process sends to its only child."""
    sent: list[tuple[int, int]] = []
    child = type("Child", (), {"pid": 7, "kill": lambda _: sent.append((7, signal.SIGKILL))})()
    monkeypatch.setattr(multiprocessing, "active_children", lambda: [child])
    monkeypatch.setattr(os, "kill", lambda *arguments: sent.append(arguments))
    return sent


@pytest.mark.parametrize(
    ("number", "forwarded"),
    [(signal.SIGUSR1, signal.SIGUSR1), (signal.SIGINT, signal.SIGTERM)],
)
def test_launcher_forwards_signals(
    listening: Callable[[], None],
    sent: list[tuple[int, int]],
    number: signal.Signals,
    forwarded: signal.Signals,
) -> None:
    """SIGINT is forwarded as SIGTERM: spawned processes get SIGINT from the terminal, too."""
    listening()
    stop_request.launches()
    signal.raise_signal(number)
    assert sent == [(7, forwarded)]


def test_trainer_does_not_signal_its_data_workers(
    listening: Callable[[], None], sent: list[tuple[int, int]]
) -> None:
    listening()
    stop_request.begin_update()
    signal.raise_signal(signal.SIGTERM)
    assert stop_request.is_requested()
    assert sent == []


def test_signal_during_spawning_reaches_the_processes(
    listening: Callable[[], None], sent: list[tuple[int, int]]
) -> None:
    listening()
    stop_request.launches()
    with stop_request.spawning():
        signal.raise_signal(signal.SIGTERM)
        assert sent == []  # deferred
    assert set(sent) == {(7, signal.SIGTERM)}


def test_processes_started_after_the_signal_inherit_it(
    listening: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    listening()
    signal.raise_signal(signal.SIGUSR1)
    monkeypatch.setattr(stop_request, "_requested", threading.Event())  # as in a new process
    monkeypatch.setattr(stop_request, "_count_down", lambda: None)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    listening()
    assert stop_request.is_requested()


def test_spawned_process_leaves_ctrl_c_to_its_launcher(
    listening: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    listening(spawned=True)
    signal.raise_signal(signal.SIGINT)
    stop_request._notice(signal.SIGINT)
    stop_request._notice(signal.SIGINT)
    assert not stop_request.is_requested()
    monkeypatch.setattr(os, "getppid", lambda: 1)  # torch sends SIGINT if the launcher is killed
    signal.raise_signal(signal.SIGINT)
    assert stop_request.is_requested()


def test_second_ctrl_c_kills_children_and_exits(
    listening: Callable[[], None],
    sent: list[tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def exit_with(status: int) -> None:
        raise SystemExit(status)

    monkeypatch.setattr(os, "_exit", exit_with)
    monkeypatch.setattr(stop_request, "_count_down", lambda: None)
    listening()
    stop_request.begin_update()
    stop_request._notice(signal.SIGINT)
    assert capfd.readouterr().err == f"{stop_request.SAVING}\n"
    with pytest.raises(SystemExit) as end:
        stop_request._notice(signal.SIGINT)
    assert end.value.code == 130
    assert sent == [(7, signal.SIGKILL)]
    assert capfd.readouterr().err == f"{stop_request.AT_ONCE}\n"


def test_ignored_sigint_stays_ignored(listening: Callable[[], None]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    listening()
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    assert signal.getsignal(signal.SIGTERM) is stop_request._request


def test_sweep_ends_with_the_job_that_was_stopped(listening: Callable[[], None]) -> None:
    listening()
    stop_request.begin_training()
    stop_request.begin_update()
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(SystemExit) as end:
        stop_request.begin_training()
    assert end.value.code == 0
