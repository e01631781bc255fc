"""Ctrl-C saves and exits, a second one exits at once, if all processes of a run are signalled."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mae_ast.trainer.stop_request import AT_ONCE, SAVING

from .conftest import (
    LAUNCHER,
    ONLY_TRAINING,
    SMALL_DECODER,
    SMALL_ENCODER,
    SMALL_RUN,
    WITHOUT_TENSORBOARD,
    Start,
    Training,
)
from .ranks import TWO
from .test_early_signals import with_package
from .test_preemption import assert_no_process_is_left, last_saved

PROGRAM = str(Path(sys.executable).with_name("mae-ast"))
UPDATES = 12
RUN = (
    *(*SMALL_ENCODER, *SMALL_DECODER, *SMALL_RUN, WITHOUT_TENSORBOARD),
    "dataset.num_workers=2",
    *("model.encoder_layerdrop=0.3", f"optimization.max_update={UPDATES}"),
)
# Makes saving take forever.
SLOW_SAVE = """
import os, sys, time

def watch(event, arguments):
    if event == "open" and os.path.basename(str(arguments[0])).startswith("checkpoint_last.pt"):
        time.sleep(1000)

sys.addaudithook(watch)
"""


@pytest.fixture(scope="module")
def uninterrupted(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Training]:
    """Run to the end a program that ignores SIGINT, like one in the background of a script."""
    folder = tmp_path_factory.mktemp("whole")
    run = pretrain(corpus, folder, "env", "--ignore-signal=INT")
    try:
        run.wait_for_update(2)
        run.signal_group(signal.SIGINT)
        yield run.finish()
    finally:
        run.kill()


def pretrain(corpus: Path, folder: Path, *prefix: str) -> Training:
    command = [*prefix, PROGRAM, "pretrain", str(corpus), "--out", str(folder / "run"), *RUN]
    log = folder / f"{len(list(folder.glob('*.log')))}.log"
    return Training(command, log, forked=not prefix)


def test_ignored_sigint_stays_ignored(uninterrupted: Training) -> None:
    assert sorted(uninterrupted.updates) == list(range(1, UPDATES + 1))


def test_saves_on_ctrl_c_and_resumes_bit_exactly(
    corpus: Path, tmp_path: Path, uninterrupted: Training
) -> None:
    first = pretrain(corpus, tmp_path)
    try:
        first.wait_for_update(5)
        first.signal_group(signal.SIGINT)
        first.finish()
    finally:
        first.kill()
    assert SAVING in first.errors.splitlines()
    assert "Traceback" not in first.output
    assert_no_process_is_left(first)
    done = max(first.updates)
    assert 5 <= done < UPDATES
    assert f"update {done}: saved and exited on a signal" in first.output
    assert last_saved(tmp_path / "run" / "checkpoints") == done
    second = pretrain(corpus, tmp_path)
    try:
        second.finish()
    finally:
        second.kill()
    assert min(second.updates) == done + 1
    assert first.updates | second.updates == uninterrupted.updates


@pytest.mark.parametrize("processes", [(), (TWO,)])
def test_second_ctrl_c_exits_at_once(
    corpus: Path, start: Start, tmp_path: Path, processes: tuple[str, ...]
) -> None:
    (tmp_path / "sitecustomize.py").write_text(SLOW_SAVE)
    run = start(
        *(corpus, "optimization.max_update=100000", "dataset.num_workers=1", *ONLY_TRAINING[1:]),
        *processes,
        program=LAUNCHER,
        PYTHONPATH=with_package(tmp_path),
    )
    run.wait_for_update(2)
    run.signal_group(signal.SIGINT)
    run.wait_for_error(SAVING)
    run.signal_group(signal.SIGINT)
    assert run.wait() == 130, run.tail
    assert run.errors.splitlines().count(SAVING) == 1
    assert run.errors.splitlines().count(AT_ONCE) == 1
    assert "Traceback" not in run.output
    assert_no_process_is_left(run)
