"""Training on segments of long recordings equals training on the same segments as files."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from mae_ast.core.io.audio import read_audio
from mae_ast.core.io.labels import write_clip_labels
from mae_ast.core.io.manifest import Manifest, write_manifest
from mae_ast.prepare.pack import pack

from .classification import LABELS, finetune_here, tone, write_pretrained
from .conftest import SMALL_DECODER, SMALL_ENCODER, SMALL_RUN
from .test_dataset import Contents, batches, contents, load, task_with

Train = Callable[..., list[dict[str, str]]]
LENGTHS = (9_000, 16_000, 11_111, 24_000, 13_000, 10_001)  # of the segments, at 16 kHz
PRETRAINING = (
    *SMALL_RUN,
    *SMALL_ENCODER,
    *SMALL_DECODER,
    *("optimization.max_update=4", "dataset.num_workers=0", "dataset.max_tokens=40000"),
    *("dataset.disable_validation=true", "checkpoint.no_epoch_checkpoints=true"),
    *("checkpoint.save_interval_updates=2", "checkpoint.keep_interval_updates=-1"),
)
VALUES = ("num_updates", "loss", "gnorm", "audio_hours")


def write_recordings(folder: Path, rate: int = 16_000) -> tuple[Path, Path]:
    """Write two recordings per split, each of one tone after the other, with pauses.

    Returns:
        A folder whose manifests list segments of the recordings, in mixed order and with the tones
        as labels, and a folder with the segments as files of their own, 16 kHz FLAC.
    """
    long, cut = folder / "long", folder / "cut"
    for each in (long, cut):
        each.mkdir()
        LABELS.write(each / "labels.csv")
    pause = rate // 10
    for split, seed in (("train", 0), ("valid", 100)):
        rows, cuts, labels = [], [], []
        for number, suffix in enumerate((".flac", ".wav")):
            parts, at = [np.zeros(3 * pause, np.int16)], 3 * pause
            for index, length in enumerate(LENGTHS):
                label = (index + number) % 3
                wave = tone([label], length / 16_000, seed + 10 * number + index)
                samples = np.interp(
                    np.arange(length * rate // 16_000) * 16_000 / rate, np.arange(length), wave
                ).astype(np.int16)
                rows.append((f"{split}{number}{suffix}", len(samples), rate, at))
                labels.append([LABELS.mids[label]])
                parts += [samples, np.zeros(pause, np.int16)]
                at += len(samples) + pause
            soundfile.write(long / f"{split}{number}{suffix}", np.concatenate(parts), rate)
        order = np.random.default_rng(seed).permutation(len(rows)).tolist()
        rows, labels = [rows[n] for n in order], [labels[n] for n in order]
        for number, (name, length, _, start) in enumerate(rows):
            begin, end = (-(-at * 16_000 // rate) for at in (start, start + length))
            whole = read_audio(long / name)
            soundfile.write(cut / f"{split}{number}.flac", whole[begin:end].numpy(), 16_000)
            cuts.append((f"{split}{number}.flac", end - begin, 16_000))
        write_manifest(long / f"{split}.tsv", ".", rows)
        write_manifest(cut / f"{split}.tsv", ".", cuts)
        for each in (long, cut):
            write_clip_labels(each / f"{split}.lbl", labels)
    return long, cut


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_recordings(tmp_path_factory.mktemp("recordings"))


def epochs(data: Path, **options: Any) -> list[Contents]:
    task = task_with(data, "train", 1, max_sample_size=12_000)
    return [contents(epoch) for epoch in batches(task, "train", 2, **options)]


def logged(log: list[dict[str, str]]) -> list[tuple[str, ...]]:
    return [tuple(stats[name] for name in VALUES) for stats in log]


def test_batches_equal_those_of_cut_files(folders: tuple[Path, Path], tmp_path: Path) -> None:
    long, cut = folders
    expected = epochs(cut, num_workers=0)
    assert [len(epoch) for epoch in expected] == [2 * len(LENGTHS)] * 2
    assert epochs(long, num_workers=0) == expected
    assert epochs(long, num_workers=2) == expected
    pack(Manifest.load(long / "train.tsv"), tmp_path, shard_bytes=100_000)
    assert epochs(tmp_path, num_workers=0) == expected


@pytest.mark.parametrize("rate", [8_000, 44_100])
def test_resampled_crops_equal_those_of_cut_files(tmp_path: Path, rate: int) -> None:
    long, cut = (
        load(folder, max_sample_size=12_000) for folder in write_recordings(tmp_path, rate)
    )
    assert long.sizes.tolist() == cut.sizes.tolist()
    for epoch in (1, 2):
        for index in range(len(long)):
            for data in (long, cut):
                data.set_epoch(epoch)
            ours, theirs = long[index].samples.int(), cut[index].samples.int()
            assert ours.shape == theirs.shape
            assert (ours - theirs).abs().max() <= 1
            assert ours.abs().max() > 2_000


def test_pretraining_equals_that_on_cut_files_and_resumes(
    folders: tuple[Path, Path], train_here: Train, tmp_path: Path
) -> None:
    long, cut = folders
    expected = logged(train_here(cut, *PRETRAINING))
    assert [values[0] for values in expected] == ["1", "2", "3", "4"]
    shutil.rmtree(tmp_path / "checkpoints")
    assert logged(train_here(long, *PRETRAINING)) == expected
    saved = "checkpoint.restore_file=checkpoints/checkpoint_1_2.pt"
    assert logged(train_here(long, *PRETRAINING, saved)) == expected[2:]


def test_fine_tuning_equals_that_on_cut_files(
    folders: tuple[Path, Path],
    train_here: Train,  # prepares this process
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    pretrained = write_pretrained(tmp_path / "tiny.pt")
    given = (f"model.checkpoint={pretrained}", "checkpoint.no_save=true", "task.mixup=0.5")
    given += ("optimization.max_update=4", "task.balanced=true")
    logs = [finetune_here(caplog, "demo", folder, *given) for folder in folders]
    assert len(logs[0]["train_inner"]) == 4
    names = ("loss", "gnorm", "accuracy")
    for kind, keys in (("train_inner", names), ("valid", ("valid_loss", "valid_accuracy"))):
        ours, theirs = (
            [{key: stats.get(key) for key in keys} for stats in log[kind]] for log in logs
        )
        assert ours == theirs
        assert None not in ours[0].values()


def test_segment_beyond_the_end_is_a_bad_file(folders: tuple[Path, Path], tmp_path: Path) -> None:
    long, _ = folders
    manifest = Manifest.read(long / "train.tsv")
    path = Path(manifest.audio_path(0))
    frames = soundfile.info(path).frames
    rows = [(str(path), 12_000, 16_000, frames - 8_000), (str(path), 12_000, 16_000, 0)]
    write_manifest(tmp_path / "train.tsv", "/", rows)
    task = task_with(long, "train", 1)
    data = task.make_dataset("train", Manifest.read(tmp_path / "train.tsv"))
    bad, good = data[0], data[1]
    assert bad.id == 0
    assert "reaches beyond the end of the file" in bad.reason
    assert torch.equal(good.samples, read_audio(path, 0, 12_000))
