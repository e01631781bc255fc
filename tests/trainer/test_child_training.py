"""Signals are forwarded to a training in a child process; short programs replace the training."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mae_ast.trainer.child_training import Interrupted, Trainings
from mae_ast.trainer.stop_request import SIGNALS


@pytest.fixture(autouse=True)
def _default_sigint() -> Iterator[None]:
    """Handle SIGINT, which tests in the background ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def program(text: str) -> list[str]:
    return [sys.executable, "-c", text]


def test_failed_training_raises() -> None:
    with Trainings() as trainings:
        trainings.run(program("pass"))
        with pytest.raises(ValueError, match="status 3"):
            trainings.run(program("raise SystemExit(3)"))


# Saves on SIGTERM, and exits with the given status.
SAVES = """
import signal, sys, time
from pathlib import Path
def save(*_):
    Path({path!r}).write_text("saved")
    sys.exit({status})
signal.signal(signal.SIGTERM, save)
Path({path!r}).write_text("up")
time.sleep(60)
"""


def signal_when_up(path: Path, *numbers: int) -> threading.Thread:
    """Signal this process once the program has written ``path``."""

    def send() -> None:
        end = time.monotonic() + 30
        while not (path.is_file() and path.read_text()) and time.monotonic() < end:
            time.sleep(0.02)
        for number in numbers:
            os.kill(os.getpid(), number)
            time.sleep(0.3)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


@pytest.mark.parametrize("number", SIGNALS)
def test_signal_reaches_the_training_which_saves(tmp_path: Path, number: int) -> None:
    path = tmp_path / "state"
    handler = signal.getsignal(number)
    thread = signal_when_up(path, number)
    with Trainings() as trainings, pytest.raises(Interrupted) as caught:
        trainings.run(program(SAVES.format(path=str(path), status=0)))
    thread.join()
    assert caught.value.number == number
    assert path.read_text() == "saved"
    assert signal.getsignal(number) == handler


def test_training_that_fails_to_save_on_a_signal_raises(tmp_path: Path) -> None:
    path = tmp_path / "state"
    thread = signal_when_up(path, signal.SIGTERM)
    with Trainings() as trainings, pytest.raises(ValueError, match="status 1"):
        trainings.run(program(SAVES.format(path=str(path), status=1)))
    thread.join()


def test_second_ctrl_c_kills_the_training(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "state"
    ignoring = SAVES.format(path=str(path), status=0).replace("sys.exit", "print")
    thread = signal_when_up(path, signal.SIGINT, signal.SIGINT)
    with Trainings() as trainings, pytest.raises(SystemExit) as end:
        trainings.run(program(ignoring))
    thread.join()
    assert end.value.code == 130
    first, second = capfd.readouterr().err.splitlines()[-2:]
    assert "saving after this update; press Ctrl-C again" in first
    assert second == "mae-ast: exited without saving"


def test_ignored_sigint_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Trainings() as trainings:
        os.kill(os.getpid(), signal.SIGINT)
        trainings.run(program("import signal; assert signal.getsignal(2) == signal.SIG_IGN"))
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_signal_between_trainings_raises_at_once() -> None:
    def signalled() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    with Trainings(), pytest.raises(Interrupted):
        signalled()


def test_signal_reaches_all_trainings_and_starts_no_further_one(tmp_path: Path) -> None:
    paths = [tmp_path / "one", tmp_path / "two"]
    caught: list[int] = []

    def run(trainings: Trainings, path: Path) -> None:
        with pytest.raises(Interrupted) as error:
            trainings.run(program(SAVES.format(path=str(path), status=0)))
        caught.append(error.value.number)

    with Trainings() as trainings:
        threads = [threading.Thread(target=run, args=(trainings, path)) for path in paths]
        for thread in threads:
            thread.start()
        end = time.monotonic() + 30
        while not all(path.is_file() and path.read_text() for path in paths):
            assert time.monotonic() < end
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)
        for thread in threads:
            thread.join()
        with pytest.raises(Interrupted):
            trainings.run(program("pass"))
    assert caught == [signal.SIGTERM, signal.SIGTERM]
    assert [path.read_text() for path in paths] == ["saved", "saved"]
