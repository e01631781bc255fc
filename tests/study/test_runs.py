"""Cells are trained and measured once, in place of which programs are called that note it."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from mae_ast.study import runs
from mae_ast.study.data import StudyData
from mae_ast.study.definition import Cell, Study
from mae_ast.study.runs import Outcome, Runner
from mae_ast.trainer.child_training import Interrupted, Trainings

UPDATES = 3


class FakeTrainings(Trainings):
    """Write a checkpoint in place of training; cells in ``fails`` end with an error."""

    def __init__(self) -> None:
        super().__init__()
        self.trained: list[str] = []
        self.commands: list[str] = []
        self.fails: set[str] = set()

    def run(
        self,
        command: Sequence[str],
        pass_fds: Sequence[int] = (),
        environment: Any = None,
        on_line: Callable[[str], None] | None = None,
    ) -> None:
        (folder,) = (each for each in command if each.startswith("hydra.run.dir="))
        run = Path(folder.partition("=")[2].strip("'"))
        if run.name in self.fails:
            raise ValueError("training ended with status 1")
        self.trained.append(run.name)
        self.commands.append(environment[runs.started_by([]).popitem()[0]])
        (run / "checkpoints").mkdir()
        state = {
            "cfg": {
                "optimization": {"max_update": UPDATES, "max_epoch": 0},
                "model": {"layers": command[-2]},
            },
            "model": {},
            "optimizer_history": [{"num_updates": UPDATES}],
            "extra_state": {"train_iterator": {"epoch": 1}},
        }
        torch.save(state, run / "checkpoints" / "checkpoint_last.pt")


@dataclasses.dataclass
class Studies:
    """A study of cells "a" and "b" in a folder, and what was trained and measured."""

    folder: Path
    trainings: FakeTrainings
    measured: list[str] = dataclasses.field(default_factory=list)

    def run(
        self, seeds: int = 1, parallel: int = 1, overrides: tuple[str, ...] = ("k=1",)
    ) -> list[Outcome]:
        cells = tuple(
            Cell({"axis": value}, seed, "demo", (f"model.x={value}", *overrides))
            for value in "ab"
            for seed in range(1, seeds + 1)
        )
        study = Study(
            "n", "t", "f", "", "demo", "", {"axis": ("a", "b")}, cells, None, (), (), None
        )
        self.trainings.trained.clear()
        self.measured.clear()
        data = StudyData(self.folder / "data", ())
        return Runner(study, data, self.folder / "out", self.trainings, 0, parallel).run()


@pytest.fixture
def studies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Studies:
    (tmp_path / "data").mkdir()
    for split in ("train", "valid"):
        (tmp_path / "data" / f"{split}.tsv").write_text(".\na.wav\t16000\n")
    found = Studies(tmp_path, FakeTrainings())

    def measure_run(run: Path, *_: object) -> dict[str, float]:
        found.measured.append(run.name)
        return {"rank_me": 2.0}

    def measure_baselines(run: Path, *_: object) -> dict[str, float]:
        found.measured.append(f"baselines of {run.name}")
        return {"words_log_mel_linear": 0.5}

    monkeypatch.setattr(runs, "measure_run", measure_run)
    monkeypatch.setattr(runs, "measure_baselines", measure_baselines)
    return found


def test_cells_are_trained_and_measured_once(studies: Studies) -> None:
    first = studies.run()
    assert studies.trainings.trained == ["a-seed1", "b-seed1"]
    assert studies.measured == [
        *("a-seed1", "baselines of a-seed1", "b-seed1", "baselines of b-seed1")
    ]
    assert first[0].measures == {"rank_me": 2.0, "words_log_mel_linear": 0.5}
    again = studies.run()
    assert again == first
    assert studies.trainings.trained == studies.measured == []


@pytest.mark.parametrize("parallel", [1, 3])
def test_more_seeds_train_the_new_ones_only(studies: Studies, parallel: int) -> None:
    studies.run()
    outcomes = studies.run(seeds=3, parallel=parallel)
    assert sorted(studies.trainings.trained) == ["a-seed2", "a-seed3", "b-seed2", "b-seed3"]
    assert [each.cell.name for each in outcomes[:3]] == ["a-seed1", "a-seed2", "a-seed3"]
    assert [len(each.measures or {}) for each in outcomes] == [2, 1, 1, 2, 1, 1]  # baselines


def test_a_cell_records_the_command_that_trains_it_alone(studies: Studies) -> None:
    studies.run()
    assert (
        f"mae-ast pretrain {studies.folder}/data --config demo --out {studies.folder}/out/a-seed1 "
        "model.x=a k=1"
    ) in studies.trainings.commands[0]


def test_cells_of_an_edited_study_are_refused(studies: Studies) -> None:
    studies.run()
    outcomes = studies.run(overrides=("k=2",))
    assert studies.trainings.trained == []
    for each in outcomes:
        assert each.measures is None
        assert "begun_with.json" in each.error
        assert "k=2" in each.error


def test_a_failed_cell_does_not_stop_the_others_and_is_tried_again(studies: Studies) -> None:
    studies.trainings.fails.add("a-seed1")
    a, b = studies.run()
    assert a.error == f"training failed, see {studies.folder}/out/a-seed1/train.log"
    assert b.measures is not None
    studies.trainings.fails.clear()
    a, _ = studies.run()
    assert studies.trainings.trained == ["a-seed1"]
    assert a.error == ""


@pytest.mark.parametrize("text", ['{"inputs"', "[]", "null", '{"inputs": {}}', ""])
def test_damaged_measures_are_measured_again(studies: Studies, text: str) -> None:
    first = studies.run()
    (studies.folder / "out" / "a-seed1" / "measures.json").write_text(text)
    assert studies.run() == first
    assert studies.measured == ["a-seed1"]


def test_other_checkpoint_or_data_is_measured_again(studies: Studies) -> None:
    studies.run()
    (studies.folder / "out" / "a-seed1" / "checkpoints" / "checkpoint_last.pt").write_bytes(
        (studies.folder / "out" / "b-seed1" / "checkpoints" / "checkpoint_last.pt").read_bytes()
    )
    studies.run()
    assert studies.measured == ["a-seed1"]
    (studies.folder / "data" / "valid.tsv").write_text(".\nb.wav\t16000\n")
    studies.run()
    assert studies.measured[0::2] == ["a-seed1", "b-seed1"]


def test_an_error_in_measuring_fails_the_cell_and_keeps_its_traceback(
    studies: Studies, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug(*_: object) -> dict[str, float]:
        torch.zeros(3).reshape(2, 2)
        return {}

    monkeypatch.setattr(runs, "measure_run", bug)
    a, b = studies.run()
    log = studies.folder / "out" / "a-seed1" / "train.log"
    assert a.error == f"shape '[2, 2]' is invalid for input of size 3; see {log}"
    assert "Traceback" in log.read_text()
    assert b.error


@pytest.mark.parametrize("parallel", [1, 2])
def test_a_signal_stops_before_the_next_measures(
    studies: Studies, monkeypatch: pytest.MonkeyPatch, parallel: int
) -> None:
    begun = threading.Event()

    def slow(*_: object) -> dict[str, float]:
        begun.set()
        time.sleep(1)
        return {}

    monkeypatch.setattr(runs, "measure_run", slow)

    def stop() -> None:
        begun.wait()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop).start()
    begin = time.monotonic()
    with pytest.raises(Interrupted), studies.trainings:
        studies.run(seeds=4, parallel=parallel)
    assert time.monotonic() - begin < 4  # not 8 times a second
