"""``mae-ast crossvalidate`` as a process: interrupted and resumed."""

from __future__ import annotations

import csv
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from mae_ast.cli import main
from mae_ast.prepare import esc50

from .classification import LABELS, tone, write_pretrained
from .conftest import DEADLINE_S, Training

COMMAND = Path(sys.executable).with_name("mae-ast")
HEADER = "filename,fold,target,category,esc10,src_file,take\n"
UPDATES = 60
RUN = (
    *("--config", "esc50"),
    *("common.cpu=true", "common.log_interval=1", "common.tensorboard_logdir=null"),
    *("dataset.num_workers=0", "dataset.batch_size=6", "dataset.validate_interval=100"),
    *("optimization.lr=[0.003]", f"optimization.max_update={UPDATES}", "optimization.max_epoch=0"),
    *("model.precision=float32", "checkpoint.save_interval=100"),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folds in ESC-50's layout, each with two clips of three classes."""
    root = tmp_path_factory.mktemp("esc50") / "ESC-50-master"
    (root / "audio").mkdir(parents=True)
    (root / "meta").mkdir()
    lines = []
    for fold in range(1, 6):
        for target, name in enumerate(LABELS.mids):
            for take in range(2):
                file = f"{fold}-{target}-{take}.wav"
                samples = tone([target], 0.3, 100 * fold + 10 * target + take)
                soundfile.write(root / "audio" / file, samples, 16_000)
                lines.append(f"{file},{fold},{target},{name},True,{fold}{target},{take}\n")
    (root / "meta" / "esc50.csv").write_text(HEADER + "".join(lines))
    out = root.parent / "manifests"
    esc50.prepare(root, out)
    for fold in (3, 4, 5):  # two folds are enough
        (out / f"fold{fold}").rename(out / f"unused{fold}")
    return out


class Commands:
    """Start ``mae-ast crossvalidate`` repeatedly with the same output folder."""

    def __init__(self, folder: Path, data: Path) -> None:
        self.folder, self.out, self.data = folder, folder / "out", data
        self.checkpoint = write_pretrained(folder / "tiny.pt")
        self.running: list[Training] = []

    def start(self, *overrides: str) -> Training:
        command = [str(COMMAND), "crossvalidate", str(self.checkpoint), str(self.data)]
        command += ["--out", str(self.out), *RUN, *overrides]
        log = self.folder / f"{len(self.running)}.log"
        self.running.append(Training(command, log, forked=True))
        return self.running[-1]

    def updates(self, fold: str) -> int:
        """Return the number of updates in the last checkpoint; 0 without a checkpoint."""
        path = self.out / fold / "checkpoints" / "checkpoint_last.pt"
        if not path.is_file():
            return 0
        state = torch.load(path, weights_only=True)
        return int(state["optimizer_history"][-1]["num_updates"])


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Iterator[Commands]:
    commands = Commands(tmp_path_factory.mktemp("folds"), data)
    try:
        yield commands
    finally:
        for each in commands.running:
            each.kill()


def stop_in(run: Training, fold: str, number: int) -> int:
    """Signal the command, but not its training process, during a fold; return its exit status."""
    end = time.monotonic() + DEADLINE_S
    while '"num_updates": "3"' not in run.output.partition(f"{fold}: training")[2]:
        assert run.process.poll() is None, run.tail
        assert time.monotonic() < end, run.tail
        time.sleep(0.01)
    os.kill(run.process.pid, number)
    return run.wait()


def test_resumes_an_interrupted_fold_and_writes_the_scores(commands: Commands) -> None:
    first = commands.start()
    assert stop_in(first, "fold2", signal.SIGINT) == 0, first.tail
    assert "stopped on SIGINT; the same command resumes" in first.output
    assert commands.updates("fold1") == UPDATES
    assert 3 <= commands.updates("fold2") < UPDATES
    assert not (commands.out / "folds.csv").exists()

    second = commands.start().finish()
    assert "fold1: training" not in second.output
    assert commands.updates("fold2") == UPDATES
    with (commands.out / "folds.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["fold", "clips", "accuracy"]
    assert [row[:2] for row in rows[:2]] == [["fold1", "6"], ["fold2", "6"]]
    scores = [float(row[2]) for row in rows[:2]]
    assert min(scores) > 0.6
    mean, spread = f"{np.mean(scores):.4f}", f"{np.std(scores, ddof=1):.4f}"
    assert [row[2] for row in rows[2:]] == [mean, spread]
    assert second.output.count(f"{'mean':27}{mean:>10}") == 1
    for number, score in enumerate(scores, start=1):
        assert f"fold{number}: accuracy {score:.4f} of 6 clips" in second.output
        report = commands.out / f"fold{number}" / "report"
        assert {path.name for path in report.iterdir()} == {
            *("summary.json", "classes.csv", "confusion.png", "curves.png")
        }


def refusal(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    """Return the one-line error of a command."""
    monkeypatch.setattr("sys.argv", ["mae-ast", "crossvalidate", "tiny.pt", *arguments])
    with pytest.raises(SystemExit) as end:
        main.main()
    text = end.value.code
    assert isinstance(text, str)
    assert text.startswith("mae-ast: error: ")
    assert "\n" not in text
    return text


def test_refuses_to_resume_with_other_settings(
    commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(commands.folder)
    line = refusal(monkeypatch, str(commands.data), "--out", "out", *RUN, "task.mixup=0.5")
    assert "out: " in line
    assert " overrides [" in line


def test_invalid_arguments_give_a_one_line_error(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = refusal(monkeypatch, str(data / "fold1"))
    assert "0 folders fold*; at least two" in line
    line = refusal(monkeypatch, str(data), "--config", "esc50", "hydra.run.dir=x")
    assert "hydra.run.dir=x: each fold has its own" in line
