"""A study that is stopped resumes to the same table, and names the cells that fail."""

from __future__ import annotations

import csv
import json
import signal
import time
from pathlib import Path

import pytest
import yaml

from .conftest import (
    DEADLINE_S,
    SMALL_DECODER,
    SMALL_ENCODER,
    SMALL_RUN,
    WITHOUT_TENSORBOARD,
    Training,
)
from .test_ctrl_c import PROGRAM

STUDY = {
    "title": "Decoder",
    "finding": "A shallow decoder suffices.",
    "limits": "It is small.",
    "scale": {
        "demo": {
            "config": "demo",
            "overrides": [
                *(*SMALL_ENCODER, *SMALL_DECODER, *SMALL_RUN, "dataset.num_workers=0"),
                WITHOUT_TENSORBOARD,
                *("task.min_sample_size=3000", "optimization.max_update=8"),
                *("dataset.disable_validation=true", "checkpoint.save_interval_updates=4"),
            ],
        }
    },
    "axes": {"layers": {1: ["model.decoder_layers=1"], 2: ["model.decoder_layers=-2"]}},
    "compare": [
        {
            "claim": "Two layers are better",
            "measure": "labels_linear",
            "of": {"layers": 2},
            "against": {"layers": 1},
            "form": "difference",
        }
    ],
}
CELLS = ("1-seed1", "2-seed1")
TIMES = ("update_s", "peak_gib", "memory_gib")


def study(folder: Path, data: Path, out: str, *arguments: str) -> Training:
    file = folder / "decoder.yaml"
    file.write_text(yaml.safe_dump(STUDY, sort_keys=False))
    command = [PROGRAM, "study", str(file), f"data={data}", "--out", out, "--seeds", "1"]
    log = folder / f"{len(list(folder.glob('*.log')))}.log"
    return Training([*command, *arguments], log, forked=True)


def rows(out: Path) -> list[dict[str, str]]:
    """Rows of ``cells.csv`` without times and memory."""
    with (out / "cells.csv").open() as file:
        return [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]


def wait_for(path: Path, run: Training) -> None:
    end = time.monotonic() + DEADLINE_S
    while not path.exists():
        assert run.process.poll() is None, run.tail
        assert time.monotonic() < end, run.tail
        time.sleep(0.01)


@pytest.fixture(scope="module")
def whole(tones: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Folder and output of a study that was not stopped."""
    folder = tmp_path_factory.mktemp("whole")
    run = study(folder, tones, "out")
    try:
        status = run.wait()
    finally:
        run.kill()
    assert status == 1, run.tail  # one cell fails
    return folder / "out", run.output


def test_study_measures_all_cells_and_names_the_one_that_fails(whole: tuple[Path, str]) -> None:
    out, output = whole
    found = rows(out)
    assert [row["cell"] for row in found] == list(CELLS)
    assert 0 < float(found[0]["relative_mse"]) < 10
    assert 0 <= float(found[0]["labels_linear"]) <= 1
    assert float(found[0]["rank_me"]) >= 1
    assert found[1]["rank_me"] == ""
    assert "2-seed1: training failed, see out/2-seed1/train.log" in output
    assert "1 of 2 cells failed; the same command tries them again" in output
    assert "DEBUG" not in output
    assert "decoder_layers=-2" in (out / "2-seed1" / "train.log").read_text()
    assert "Two layers are better" in (out / "study.md").read_text()
    assert (out / "study.png").stat().st_size > 10_000
    (start,) = (out / CELLS[0] / "starts.jsonl").read_text().splitlines()
    assert json.loads(start)["command"].startswith("mae-ast pretrain ")
    assert json.loads((out / "study.json").read_text())["runs"] == [["1-seed1"], []]
    peak = json.loads((out / CELLS[0] / "measures.json").read_text())["measures"]["peak_gib"]
    assert 0.1 < peak < 8


def test_stopped_study_resumes_to_the_same_table(
    whole: tuple[Path, str], tones: Path, tmp_path: Path
) -> None:
    first = study(tmp_path, tones, "out")
    try:
        wait_for(tmp_path / "out" / CELLS[0] / "metrics.jsonl", first)
        first.process.send_signal(signal.SIGTERM)
        assert first.wait() == 0
    finally:
        first.kill()
    assert "the same command resumes" in first.output
    assert not (tmp_path / "out" / "cells.csv").exists()
    second = study(tmp_path, tones, "out")
    try:
        assert second.wait() == 1, second.tail
    finally:
        second.kill()
    assert rows(tmp_path / "out") == rows(whole[0])
