"""Plots of reconstructed validation clips in TensorBoard."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from tensorboardX.proto.event_pb2 import Event

from .conftest import WITH_TENSORBOARD, write_clips, write_manifest

Train = Callable[..., list[dict[str, str]]]


def read_events(folder: Path) -> Iterator[Event]:
    """Read the events of all files below a folder.

    Each record is: length, checksum of the length, data, checksum of the data. The last one may be
    incomplete, since another thread writes them.
    """
    for path in sorted(folder.rglob("events.out.tfevents.*")):
        records = path.read_bytes()
        while len(records) >= 8:
            (length,) = struct.unpack("<Q", records[:8])
            if len(records) < 16 + length:
                break
            yield Event.FromString(records[12 : 12 + length])
            records = records[16 + length :]


def read_images(folder: Path, number: int = 2) -> list[tuple[int, str, np.ndarray]]:
    """Return step, tag and pixels of each image, once ``number`` are there."""
    end = time.monotonic() + 30
    while True:
        images = [
            (event.step, value.tag, imread(BytesIO(value.image.encoded_image_string)))
            for event in read_events(folder)
            for value in event.summary.value
            if value.HasField("image")
        ]
        if len(images) >= number or time.monotonic() > end:
            return images
        time.sleep(0.2)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_clips(tmp_path, "train", [1.0] * 4)
    write_clips(tmp_path, "valid", [1.0, 0.8, 0.9, 1.0, 0.7])
    return tmp_path


def train(train_here: Train, data: Path, *overrides: str) -> None:
    logged = train_here(
        data,
        "dataset.num_workers=0",
        "optimization.max_update=2",
        "checkpoint.no_save=true",
        "dataset.validate_interval=1",
        WITH_TENSORBOARD,
        *overrides,
    )
    assert len(logged) == 2


def add_bad_clips(manifest: Path, number: int, keep_good: bool) -> None:
    """Insert clips that cannot be decoded before the others."""
    rows = [line.split("\t") for line in manifest.read_text().splitlines()[1:]]
    for each in range(number):
        (manifest.parent / f"bad_{each}.flac").write_bytes(b"no music")
    bad = [(f"bad_{each}.flac", 16_000, 16_000) for each in range(number)]
    write_manifest(manifest, bad + (rows if keep_good else []))


@pytest.mark.parametrize(("pad", "precision"), [("false", "float32"), ("true", "bfloat16")])
def test_each_validation_writes_a_plot(
    data: Path, train_here: Train, pad: str, precision: str
) -> None:
    train(train_here, data, f"task.pad_audio={pad}", f"model.precision={precision}")
    images = read_images(data / "tblog")
    assert [(step, tag) for step, tag, _ in images] == [(1, "valid"), (2, "valid")]
    for _, _, pixels in images:
        height, width, _ = pixels.shape
        assert height > 400  # four clips
        assert width > 800  # original, visible patches, reconstruction
        assert pixels[..., :3].std() > 0.1
    assert not np.array_equal(images[0][2], images[1][2])


@pytest.mark.parametrize("num_bad", [3, 4])  # four clips are plotted
def test_bad_clips_are_skipped_in_plots(data: Path, train_here: Train, num_bad: int) -> None:
    add_bad_clips(data / "valid.tsv", num_bad, keep_good=True)
    train(train_here, data)
    assert len(read_images(data / "tblog")) == 2


def test_validation_exits_when_all_clips_are_bad(data: Path, train_here: Train) -> None:
    add_bad_clips(data / "valid.tsv", 4, keep_good=False)
    with pytest.raises(
        SystemExit, match=r"^mae-ast: error: .*valid.tsv: 4 of 4 files read are bad"
    ):
        train(train_here, data)


def test_plots_are_tagged_with_the_validation_subset(data: Path, train_here: Train) -> None:
    (data / "valid.tsv").rename(data / "test.tsv")
    train(train_here, data, "dataset.valid_subset=test")
    assert [tag for _, tag, _ in read_images(data / "tblog")] == ["test", "test"]
