"""A signal before the first update ends all processes of a run."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from mae_ast.trainer import stop_request
from mae_ast.trainer.command import PACKAGE

from .conftest import LAUNCHER, ONLY_TRAINING, Start, Training
from .ranks import free_port, rank_overrides
from .test_preemption import last_saved

# Signals its own process when a module is first imported or a file is first opened.
SIGNAL_AT = """
import os, signal, sys

kind, _, name = os.environ["SIGNAL_AT"].partition(":")
left = 1

def watch(event, arguments):
    global left
    if left and event == kind and os.path.basename(str(arguments[0])) == name:
        left = 0
        os.kill(os.getpid(), signal.Signals[os.environ.get("SIGNAL", "SIGUSR1")])

sys.addaudithook(watch)
"""
RUN = ("optimization.max_update=1000", "dataset.num_workers=0", *ONLY_TRAINING[1:])


@pytest.fixture(scope="module")
def hook(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hook")
    (folder / "sitecustomize.py").write_text(SIGNAL_AT)
    return folder


@pytest.mark.parametrize(
    "moments",
    [
        ("import:fairseq_cli", None),  # within the seconds that imports take
        (None, "open:train.tsv"),
        ("import:fairseq_cli", "open:train.tsv"),
    ],
)
def test_all_ranks_end_after_the_first_update(
    corpus: Path, start: Start, hook: Path, moments: tuple[str | None, str | None]
) -> None:
    port = free_port()
    ranks: list[Training] = []
    for rank, moment in enumerate(moments):
        hooked = {"PYTHONPATH": with_package(hook), "SIGNAL_AT": moment} if moment else {}
        own = rank_overrides(rank, port)
        forked = moment is None or not moment.startswith("import:")  # a fork imports little
        ranks.append(start(corpus, *RUN, *own, program=LAUNCHER, forked=forked, **hooked))
    for rank in ranks:
        rank.finish()
        assert "Traceback" not in rank.output, rank.tail
    assert list(ranks[0].updates) == [1]
    assert last_saved(ranks[0].log.parent / "out" / "checkpoints") == 1


def test_rank_that_waits_for_a_missing_one_exits_within_the_limit(
    corpus: Path, start: Start, hook: Path
) -> None:
    run = start(
        corpus,
        *RUN,
        *rank_overrides(0, free_port()),
        program=LAUNCHER,
        forked=False,
        SIGNAL_AT="import:fairseq_cli",
        PYTHONPATH=with_package(hook),
        **{stop_request.LIMIT: "1"},
    )
    run.finish()  # earlier than the timeout of a rendezvous
    assert run.errors.splitlines()[-1].startswith("mae-ast: ended on a signal before the first")
    assert "Traceback" not in run.output


@pytest.mark.parametrize(
    ("number", "moment"),
    [(signal.SIGUSR1, "open:train.tsv"), (signal.SIGINT, "import:fairseq_cli")],
)
def test_single_process_ends_at_once(
    corpus: Path, start: Start, hook: Path, number: signal.Signals, moment: str
) -> None:
    run = start(
        corpus,
        *RUN,
        program=LAUNCHER,
        forked=not moment.startswith("import:"),
        SIGNAL=number.name,
        SIGNAL_AT=moment,
        PYTHONPATH=with_package(hook),
    ).finish()
    assert run.errors.splitlines()[-1].startswith("mae-ast: ended on a signal before the first")
    assert "Traceback" not in run.output
    assert not run.updates


def with_package(hook: Path) -> str:
    """Build a ``PYTHONPATH`` that holds a hook and this package."""
    return os.pathsep.join([str(hook), str(PACKAGE.parent)])
