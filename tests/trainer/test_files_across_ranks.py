"""Several ranks add up their bad files and check that they have the same clips (gloo on a CPU)."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from .conftest import ONLY_TRAINING, Start, Training, sound, write_manifest
from .ranks import last_lines, start_ranks
from .test_bad_files import garbage_rows, good_rows
from .test_dataset import task_with

RUN = ("dataset.max_tokens=null", "dataset.num_workers=0", *ONLY_TRAINING)


def corpus_with(folder: Path, num_good: int, num_bad: int) -> list[Path]:
    """Write good and bad clips; return the folder of each of two ranks."""
    write_manifest(
        folder / "train.tsv", good_rows(folder, number=num_good) + garbage_rows(folder, num_bad)
    )
    return [folder, folder]


def message(run: Training) -> str:
    """Return the one-line error of a failed training."""
    assert run.wait() == 1, run.tail
    assert "Traceback" not in run.output
    (line,) = [line for line in run.errors.splitlines() if line.startswith("mae-ast: error: ")]
    return line


def test_bad_files_of_all_ranks_are_added_up(tmp_path: Path, start: Start) -> None:
    """In one epoch of 5 steps, neither rank finds more than 20."""
    options = ("dataset.batch_size=4", "optimization.max_update=5")
    runs = start_ranks(start, corpus_with(tmp_path, 12, 24), *RUN, *options, out="run")
    messages = [message(run) for run in runs]
    assert messages[0] == messages[1]
    found = re.search(r"train\.tsv: (\d+) of \d+ files read are bad", messages[0])
    assert found is not None
    assert 20 < int(found[1]) <= 24
    listed = [set(re.findall(r"garbage_\d+", run.errors.partition("error:")[2])) for run in runs]
    assert all(0 < len(files) <= 20 for files in listed)
    assert not listed[0] & listed[1]
    assert len(listed[0] | listed[1]) == int(found[1])


def test_stops_when_all_files_of_an_epoch_are_bad(tmp_path: Path) -> None:
    corpus_with(tmp_path, 2, 4)
    task = task_with(tmp_path, "train", seed=1)
    task.dataset("train").batch_by_size(np.arange(2, 6), max_sentences=1)  # only the bad clips
    task._check_bad_files([{"num_bad_train": 3.0, "num_read_train": 4.0}])
    assert not task.should_stop
    task._check_bad_files([{"num_bad_train": 4.0, "num_read_train": 4.0}])
    assert task.should_stop
    assert task.failed
    with pytest.raises(SystemExit, match=r"4 of 4 files read are bad"):
        task.before_exit()


def test_a_bad_file_is_counted_and_logged_by_one_rank_only(tmp_path: Path, start: Start) -> None:
    """Another rank may read it in another epoch, yet 20 bad files are still 20."""
    runs = start_ranks(
        start,
        corpus_with(tmp_path, 4, 20),
        *RUN,
        "dataset.batch_size=2",
        "optimization.max_epoch=5",
        "common.log_interval=1",
        out="run",
    )
    for run in runs:
        run.finish()
    logged = [re.findall(r"skipping bad file: .*(garbage_\d+)\.flac:", run.output) for run in runs]
    assert all(logged)
    assert sorted(logged[0] + logged[1]) == [f"garbage_{number:02d}" for number in range(20)]


# --- clips of all ranks -------------------------------------------------------------------------

# Loads a split as one of two ranks; rank 1 cannot read file headers.
LOAD = """
import sys
from pathlib import Path

from torch import distributed

from mae_ast.console import user_errors
from mae_ast.core.io import manifest
from mae_ast.core.io.audio import AudioError
from tests.trainer.test_dataset import load

rank, port, data = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])


def fail(path):
    raise AudioError(f"{path}: Input/output error")


if rank == 1:
    manifest.probe_rate = fail
distributed.init_process_group("gloo", f"tcp://localhost:{port}", rank=rank, world_size=2)
with user_errors():
    print(load(data, "valid").sizes.tolist())
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Folder with three clips of 1 s at 48 kHz and a manifest without sample rates."""
    folder = tmp_path / "folder"
    folder.mkdir()
    names = [f"{number}.flac" for number in range(3)]
    for number, name in enumerate(names):
        soundfile.write(folder / name, sound(1.0, number, 48_000), 48_000)
    write_manifest(folder / "valid.tsv", [(name, 48_000) for name in names])
    return folder


@pytest.mark.parametrize("can_write", [True, False])
def test_rank_0_reads_the_headers_for_all(folder: Path, tmp_path: Path, can_write: bool) -> None:
    """With and without a cache of sample rates; rank 1 cannot read the headers."""
    cache = folder / "valid.tsv.rates.npz"
    if not can_write:
        cache.mkdir()
    assert last_lines(LOAD, tmp_path, [folder], [folder]) == ["[16000, 16000, 16000]"] * 2
    assert cache.is_file() == can_write


def test_ranks_with_different_clips_give_a_one_line_error(folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(folder, tmp_path / "other")
    lines = (folder / "valid.tsv").read_text().splitlines(keepends=True)
    (other / "valid.tsv").write_text("".join([*lines[:-1], "0.flac\t48000\n"]))
    differs = "valid.tsv: the clips and their lengths on rank 1 differ from those on rank 0; "
    for line in last_lines(LOAD, tmp_path, [folder], [other]):
        assert line.startswith(f"mae-ast: error: {differs}")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_manifest_missing_on_one_rank_stops_both(folder: Path, tmp_path: Path, rank: int) -> None:
    folders = [[folder], [folder]]
    folders[rank] = [tmp_path / "none"]
    lines = last_lines(LOAD, tmp_path, *folders)
    assert all(line.startswith("mae-ast: error: ") for line in lines)
    assert all("/none/valid.tsv: no such manifest" in line for line in lines)
