"""Training from tar shards: the same batches as from loose files; tolerates damaged clips."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from mae_ast.core.io.archive import Member
from mae_ast.core.io.manifest import Manifest
from mae_ast.prepare.pack import pack
from mae_ast.trainer.fairseq_patches import training_loop

from .conftest import ONLY_TRAINING, write_clips
from .test_dataset import Contents, batches, contents, task_with

NUM_CLIPS = 24

Train = Callable[..., list[dict[str, str]]]


@pytest.fixture(scope="module", autouse=True)
def _patched_fairseq() -> None:
    """Apply the patches of a training; without them each loader's workers take 5 s to stop."""
    training_loop.apply()


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Folder of loose files of 0.5 to 1.65 s, and folder with the same clips in several shards."""
    loose, packed = tmp_path / "loose", tmp_path / "packed"
    loose.mkdir()
    write_clips(loose, "train", [0.5 + number / 20 for number in range(NUM_CLIPS)])
    result = pack(Manifest.load(loose / "train.tsv"), packed, shard_bytes=150_000)
    assert result.num_shards > 3
    return loose, packed


def epochs(data: Path, num_epochs: int = 2, **options: int) -> list[Contents]:
    task = task_with(data, "train", 1, max_sample_size=12_000)
    return [contents(epoch) for epoch in batches(task, "train", num_epochs, **options)]


def test_batches_equal_those_of_loose_files(folders: tuple[Path, Path]) -> None:
    expected = epochs(folders[0], num_workers=0)
    assert [len(epoch) for epoch in expected] == [NUM_CLIPS] * 2
    assert epochs(folders[1], num_workers=0) == expected
    assert epochs(folders[1], num_workers=2) == expected


def test_ranks_and_workers_read_each_clip_once(folders: tuple[Path, Path]) -> None:
    (expected,) = epochs(folders[1], 1, num_workers=0)
    ranks = [
        epochs(folders[1], 1, num_workers=2, num_shards=2, shard_id=rank)[0] for rank in range(2)
    ]
    assert not set(ranks[0]) & set(ranks[1])
    assert ranks[0] | ranks[1] == expected


def flip_a_bit(packed: Path, row: int) -> None:
    """Flip a bit in the middle of a packed clip."""
    member = Member.parse(Manifest.load(packed / "train.tsv").audio_path(row))
    assert member is not None
    with Path(member.archive).open("r+b") as file:
        file.seek(member.offset + member.length // 2)
        (byte,) = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte ^ 16]))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_flipped_bit_is_one_bad_clip(folders: tuple[Path, Path], num_workers: int) -> None:
    flip_a_bit(folders[1], 7)
    expected = epochs(folders[0], num_workers=0)
    task = task_with(folders[1], "train", 1, max_sample_size=12_000)
    found = []
    for epoch in batches(task, "train", 2, num_workers=num_workers):
        found.append(contents(epoch))
        assert [file.id for batch in epoch for file in batch["files"].bad] == [7]
    assert found == [{row: clip for row, clip in each.items() if row != 7} for each in expected]


def test_training_skips_a_clip_with_a_flipped_bit(
    folders: tuple[Path, Path], train_here: Train, caplog: pytest.LogCaptureFixture
) -> None:
    def run(data: Path) -> list[float]:
        updates = train_here(
            data, "optimization.max_epoch=2", "dataset.num_workers=0", *ONLY_TRAINING
        )
        return [float(values["loss"]) for values in updates]

    whole = run(folders[1])
    assert run(folders[0]) == whole
    flip_a_bit(folders[1], 7)
    damaged = run(folders[1])
    assert len(damaged) == len(whole) > 4
    assert all(map(math.isfinite, damaged))
    assert damaged != whole
    (warning,) = [
        record.getMessage()
        for record in caplog.records
        if record.getMessage().startswith("skipping bad file")
    ]
    assert "train.tsv:9" in warning
    assert ".tar" in warning
