"""Training skips files that it cannot use, and stops if they are too many."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import mae_ast

from .conftest import ONLY_TRAINING, Start, Training, sound, write_clips, write_manifest
from .test_dataset import task_with

LENGTH = 16_000
NUM_GOOD = 12
RUN = ("dataset.max_tokens=null", "dataset.batch_size=4", "dataset.num_workers=2")

Train = Callable[..., list[dict[str, str]]]
Rows = list[tuple[str, int, int]]


def good_rows(folder: Path, split: str = "train", number: int = NUM_GOOD) -> Rows:
    write_clips(folder, split, [LENGTH / 16_000] * number)
    return [(f"{split}_{each:02d}.flac", LENGTH, 16_000) for each in range(number)]


def garbage_rows(folder: Path, number: int) -> Rows:
    rows = []
    for each in range(number):
        (folder / f"garbage_{each:02d}.flac").write_bytes(b"no music" * 100)
        rows.append((f"garbage_{each:02d}.flac", LENGTH, 16_000))
    return rows


# Names of bad files, and the essential words of their messages.
BAD = {
    "empty.flac": "is empty (0 bytes)",
    "garbage.flac": "cannot be decoded",
    "garbage.mkv": "cannot be decoded",
    "nan.wav": "not finite",
    "short.flac": "decodes to 4800 samples at 16 kHz, at least 8000 are needed",
    "cut.flac": "decodes to 4096 samples at 16 kHz, at least 8000 are needed",
}


def write_all_kinds(folder: Path) -> list[str]:
    (folder / "empty.flac").write_bytes(b"")
    (folder / "garbage.flac").write_bytes(b"no music" * 100)
    (folder / "garbage.mkv").write_bytes(b"no music" * 100)
    values = sound(1.0, 1).astype(np.float32) / 32768
    values[5_000] = np.nan
    soundfile.write(folder / "nan.wav", values, 16_000, subtype="FLOAT")
    soundfile.write(folder / "short.flac", sound(0.3, 1), 16_000)
    soundfile.write(folder / "cut.flac", sound(1.0, 1), 16_000)
    whole = (folder / "cut.flac").read_bytes()
    (folder / "cut.flac").write_bytes(whole[: len(whole) // 2])
    return list(BAD)


@pytest.fixture(scope="module")
def with_some(tmp_path_factory: pytest.TempPathFactory, start_for_all: Start) -> Training:
    """Train for four epochs of 5 batches, with a bad file of each kind."""
    folder = tmp_path_factory.mktemp("some")
    good_rows(folder, "valid", 2)
    rows = good_rows(folder) + [(name, LENGTH, 16_000) for name in write_all_kinds(folder)]
    write_manifest(folder / "train.tsv", rows)
    return start_for_all(folder, *RUN, "optimization.max_update=20", out="some")


@pytest.fixture(scope="module")
def with_too_many(tmp_path_factory: pytest.TempPathFactory, start_for_all: Start) -> Training:
    folder = tmp_path_factory.mktemp("many")
    good_rows(folder, "valid", 2)
    write_manifest(folder / "train.tsv", good_rows(folder) + garbage_rows(folder, 24))
    return start_for_all(folder, *RUN, "optimization.max_update=40", out="many")


def test_bad_files_are_skipped_and_named_once(with_some: Training, with_too_many: Training) -> None:
    run = with_some.finish()
    warnings = [line for line in run.output.splitlines() if "[WARNING] - skipping bad file" in line]
    assert len(warnings) == len(BAD)
    for line_number, (name, why) in enumerate(BAD.items(), start=2 + NUM_GOOD):
        (warning,) = [line for line in warnings if f"/{name}: " in line]
        assert why in warning
        assert f"/train.tsv:{line_number}" in warning
    assert sorted(run.updates) == list(range(1, 21))
    steps = [values for values in run.updates.values() if float(values["gnorm"]) > 0]
    assert len(steps) >= 16  # a batch may consist of bad files only
    assert all(math.isfinite(float(values["loss"])) for values in steps)
    assert all(float(values["loss"]) > 0 for values in steps)
    clips = [round(float(stats["train_bsz"]) * 5) for stats in run.stats("train")]
    assert clips == [NUM_GOOD] * 4


def test_too_many_bad_files_stop_a_run(with_too_many: Training) -> None:
    run = with_too_many
    assert run.wait() == 1
    assert "Traceback" not in run.output
    (message,) = [line for line in run.errors.splitlines() if line.startswith("mae-ast: error: ")]
    assert "/train.tsv: " in message
    assert "max(20, 0.01 of the files read)" in message
    assert "task.max_bad_fraction" in message
    listed = [Path(line.strip()).name for line in run.errors.partition(message)[2].splitlines()]
    listed = [name for name in listed if name]
    assert 20 < len(listed) == len(set(listed))
    assert set(listed) <= {f"garbage_{number:02d}.flac" for number in range(24)}
    assert len(run.updates) < 9  # within the first epoch

    checkpoint = run.log.parent / "many" / "checkpoints" / "checkpoint_last.pt"
    mae_ast.load(checkpoint)
    state = torch.load(checkpoint, weights_only=True)
    assert state["optimizer_history"][-1]["num_updates"] == max(run.updates)


@pytest.mark.parametrize(
    ("num_bad", "max_bad_fraction", "stops"),
    [(20, 0, False), (21, 0, True), (21, 0.5, True), (21, 0.7, False)],
)
def test_max_bad_fraction(
    tmp_path: Path, train_here: Train, num_bad: int, max_bad_fraction: float, stops: bool
) -> None:
    good = good_rows(tmp_path)
    write_manifest(tmp_path / "train.tsv", good + garbage_rows(tmp_path, num_bad))

    def train() -> list[dict[str, str]]:
        return train_here(
            tmp_path,
            "dataset.num_workers=0",
            "dataset.max_tokens=null",
            "dataset.batch_size=4",
            "optimization.max_update=18",
            f"task.max_bad_fraction={max_bad_fraction}",
            *ONLY_TRAINING,
        )

    if stops:
        with pytest.raises(SystemExit, match=r"^mae-ast: error: .*21 of \d\d files read are bad"):
            train()
    else:
        assert len(train()) == 18


def test_batch_of_bad_files_only(
    tmp_path: Path, train_here: Train, caplog: pytest.LogCaptureFixture
) -> None:
    rows = good_rows(tmp_path, number=4) + garbage_rows(tmp_path, 3)
    write_manifest(tmp_path / "train.tsv", rows)
    logged = train_here(
        tmp_path,
        "dataset.num_workers=0",
        "dataset.batch_size=1",
        "optimization.max_update=14",
        *ONLY_TRAINING,
    )
    assert len(logged) == 14
    assert all(float(stats["loss"]) >= 0 for stats in logged)

    # Averages ignore such batches. All good clips are equally long, so their losses weigh the same.
    epochs = [json.loads(r.getMessage()) for r in caplog.records if r.name == "train"]
    for number, epoch in enumerate(epochs):
        steps = [stats for stats in logged[number * 7 :][:7] if float(stats["gnorm"]) > 0]
        losses = [float(stats["loss"]) for stats in steps]
        assert len(losses) == 4
        assert all(math.isfinite(loss) and loss > 0 for loss in losses)
        assert float(epoch["train_loss"]) == pytest.approx(sum(losses) / 4, rel=1e-5)
    assert len(epochs) == 2


def test_bad_file_is_read_again_and_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A file may be unavailable for a moment."""
    write_manifest(tmp_path / "train.tsv", good_rows(tmp_path, number=3))
    task = task_with(tmp_path, "train", seed=1)
    data, path = task.dataset("train"), tmp_path / "train_01.flac"
    found = []
    for epoch in range(1, 5):
        if epoch == 3:
            (tmp_path / "away.flac").rename(path)
        elif epoch == 1:
            path.rename(tmp_path / "away.flac")
        task.begin_epoch(epoch, None)
        batch = data.collater([data[index] for index in range(3)])
        data.bad_files.add(batch["files"])
        found.append((batch["id"].tolist(), data.bad_files.rows, data.bad_files.counts()))
    assert found == [([0, 2], [1], (1, 3))] * 2 + [([0, 1, 2], [], (0, 3))] * 2
    logged = [r.getMessage() for r in caplog.records if "skipping bad file" in r.getMessage()]
    assert logged == [f"skipping bad file: {path}: no such audio file ({tmp_path / 'train.tsv'}:3)"]


def test_bad_files_of_a_split_in_a_subfolder_are_counted(tmp_path: Path) -> None:
    """Use a split such as ``dataset.valid_subset=clean/valid``."""
    (tmp_path / "clean").mkdir()
    write_manifest(tmp_path / "clean" / "valid.tsv", garbage_rows(tmp_path / "clean", 2))
    task = task_with(tmp_path, "clean/valid", seed=1)
    data = task.dataset("clean/valid")
    task._tally(data.collater([data[0]])["files"])
    assert data.bad_files.counts() == (1, 1)
