"""A study that is stopped resumes to the same table, and names the cells that fail."""

from __future__ import annotations

import csv
import json
import signal
import time
from pathlib import Path

import pytest
import yaml

from .conftest import DEADLINE_S, SMALL_DECODER, SMALL_ENCODER, SMALL_RUN, Training
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
                *("task.min_sample_size=3000", "optimization.max_update=8"),
                *("dataset.disable_validation=true", "checkpoint.save_interval_updates=4"),
            ],
        }
    },
    "axes": {
        "layers": {1: ["model.decoder_layers=1"], 2: ["model.decoder_layers=2"]},
        "heads": {4: [], 5: ["model.encoder_attention_heads=5"]},
    },
    "omit": [{"layers": 2, "heads": 5}],
    "compare": [
        {
            "claim": "Two layers are better",
            "measure": "labels_linear",
            "of": {"layers": 2},
            "against": {"layers": 1},
            "as": "difference",
        }
    ],
}
CELLS = ("1-4-seed1", "1-5-seed1", "2-4-seed1")
TIMES = ("update_s", "peak_gib", "memory_gib")


def study(folder: Path, data: Path, out: str, *arguments: str) -> Training:
    file = folder / "decoder.yaml"
    file.write_text(yaml.safe_dump(STUDY, sort_keys=False))
    command = [PROGRAM, "study", str(file), f"data={data}", "--out", out, "--seeds", "1"]
    return Training([*command, *arguments], folder / f"{len(list(folder.glob('*.log')))}.log")


def rows(out: Path) -> list[dict[str, str]]:
    """All cells without what a clock or the memory says."""
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
    for row in (found[0], found[2]):
        assert 0 < float(row["relative_mse"]) < 10
        assert 0 <= float(row["labels_linear"]) <= 1
        assert float(row["rank_me"]) >= 1
    assert found[1]["rank_me"] == ""
    failed = f"1-5-seed1: training failed, see {Path('out') / '1-5-seed1' / 'train.log'}"
    assert failed in output
    assert "1 of 3 cells failed; the same command tries them again" in output
    assert "(encoder_attention_heads=5)" in (out / "1-5-seed1" / "train.log").read_text()
    assert "Two layers are better" in (out / "study.md").read_text()
    assert (out / "study.png").stat().st_size > 10_000
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
        wait_for(tmp_path / "out" / CELLS[2] / "metrics.jsonl", second)
        kept = (tmp_path / "out" / CELLS[0] / "measures.json").read_bytes()
        second.kill()
        last = study(tmp_path, tones, "out")
        assert last.wait() == 1, last.tail
        last.kill()
    finally:
        second.kill()
    assert (tmp_path / "out" / CELLS[0] / "measures.json").read_bytes() == kept
    assert rows(tmp_path / "out") == rows(whole[0])
    other = study(tmp_path, tones, "out", "optimization.lr=[0.1]")
    assert other.wait() == 1
    assert "was started with overrides [], not ['optimization.lr=[0.1]']" in other.output
