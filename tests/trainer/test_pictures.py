"""Pictures of validation clips in TensorBoard."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from tensorboardX.proto.event_pb2 import Event

from .conftest import write_clips, write_manifest

Train = Callable[..., list[dict[str, str]]]


def read_events(folder: Path) -> Iterator[Event]:
    """Events of all files below a folder: length, its checksum, data, its checksum, again."""
    for path in sorted(folder.rglob("events.out.tfevents.*")):
        records = path.read_bytes()
        while records:
            (length,) = struct.unpack("<Q", records[:8])
            yield Event.FromString(records[12 : 12 + length])
            records = records[16 + length :]


def read_pictures(folder: Path) -> list[tuple[int, str, np.ndarray]]:
    """Step, tag and pixels of each image."""
    pictures = []
    for event in read_events(folder):
        for value in event.summary.value:
            if value.HasField("image"):
                png = folder / "picture.png"
                png.write_bytes(value.image.encoded_image_string)
                pictures.append((event.step, value.tag, imread(png)))
    return pictures


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
        *overrides,
    )
    assert len(logged) == 2


def add_bad_clips(manifest: Path, number: int, keep_good: bool) -> None:
    """Put clips that cannot be decoded first."""
    rows = [line.split("\t") for line in manifest.read_text().splitlines()[1:]]
    for each in range(number):
        (manifest.parent / f"bad_{each}.flac").write_bytes(b"no music")
    bad = [(f"bad_{each}.flac", 16_000, 16_000) for each in range(number)]
    write_manifest(manifest, bad + (rows if keep_good else []))


@pytest.mark.parametrize(("pad", "precision"), [("false", "float32"), ("true", "bfloat16")])
def test_each_validation_gives_a_picture(
    data: Path, train_here: Train, pad: str, precision: str
) -> None:
    train(train_here, data, f"task.pad_audio={pad}", f"model.precision={precision}")
    pictures = read_pictures(data / "tblog")
    assert [(step, tag) for step, tag, _ in pictures] == [(1, "valid"), (2, "valid")]
    for _, _, pixels in pictures:
        height, width, _ = pixels.shape
        assert height > 400  # four clips
        assert width > 800  # original, visible, rebuilt
        assert pixels[..., :3].std() > 0.1
    assert not np.array_equal(pictures[0][2], pictures[1][2])


def test_some_bad_clips_are_left_out_of_the_picture(data: Path, train_here: Train) -> None:
    add_bad_clips(data / "valid.tsv", 3, keep_good=True)
    train(train_here, data)
    assert len(read_pictures(data / "tblog")) == 2


def test_validation_where_the_first_four_clips_are_bad(data: Path, train_here: Train) -> None:
    add_bad_clips(data / "valid.tsv", 4, keep_good=True)
    train(train_here, data)
    assert len(read_pictures(data / "tblog")) == 2


def test_validation_where_all_clips_are_bad(data: Path, train_here: Train) -> None:
    add_bad_clips(data / "valid.tsv", 4, keep_good=False)
    with pytest.raises(
        SystemExit, match=r"^mae-ast: error: .*valid.tsv: 4 of 4 files read are bad"
    ):
        train(train_here, data)


def test_validation_subset_of_another_name(data: Path, train_here: Train) -> None:
    (data / "valid.tsv").rename(data / "test.tsv")
    train(train_here, data, "dataset.valid_subset=test")
    assert [tag for _, tag, _ in read_pictures(data / "tblog")] == ["test", "test"]
