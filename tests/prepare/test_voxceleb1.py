"""VoxCeleb1: splits follow the identification list, and speakers become labels."""

from __future__ import annotations

from pathlib import Path

import pytest

from mae_ast.core.io.labels import Labels
from mae_ast.prepare import voxceleb1
from tests.prepare.conftest import write_garbage, write_sound

SPEAKERS = ("id10001", "id10270", "id11251")
SPLITS = {"train": "1", "valid": "2", "test": "3"}


def lines() -> list[tuple[str, str]]:
    return [
        (number, f"{speaker}/{number}zcIwhmdeo4/{clip:05}.wav")
        for speaker in SPEAKERS
        for number in SPLITS.values()
        for clip in range(3 if number == "1" else 1)
    ]


@pytest.fixture
def tree(tmp_path) -> Path:
    root = tmp_path / "VoxCeleb1"
    for _, clip in lines():
        part = "test" if clip.startswith("id10270") else "dev"
        write_sound(root / part / "wav" / clip)
    (root / "iden_split.txt").write_text("".join(f"{n} {clip}\n" for n, clip in lines()))
    return root


@pytest.mark.parametrize("layout", ["dev/wav", "wav", "."])
def test_splits_follow_the_list(tree, tmp_path, rows, layout):
    if layout != "dev/wav":
        (tree / layout).mkdir(exist_ok=True)
        for speaker in [*tree.glob("dev/wav/*"), *tree.glob("test/wav/*")]:
            speaker.rename(tree / layout / speaker.name)
    done = voxceleb1.prepare(tree, tmp_path / "out")
    for split, number in SPLITS.items():
        found = rows(tmp_path / "out", split)
        clips = {"/".join(Path(path).parts[-3:]): mids for path, mids in found.items()}
        expected = {clip: (clip[:7],) for n, clip in lines() if n == number}
        assert clips == expected
    assert Labels.read(tmp_path / "out" / "labels.csv").mids == SPEAKERS
    assert [(split.clips, split.classes) for split in done.splits] == [(9, 3), (3, 3), (3, 3)]


def test_missing_and_unreadable_files_are_reported(tree, tmp_path):
    gone = tree / "test" / "wav" / "id10270" / "2zcIwhmdeo4" / "00000.wav"
    bad = write_garbage(tree / "dev" / "wav" / "id10001" / "1zcIwhmdeo4" / "00001.wav")
    gone.unlink()
    done = voxceleb1.prepare(tree, tmp_path / "out")
    assert done.missing == ("id10270/2zcIwhmdeo4/00000.wav",)
    assert [path for path, _ in done.skipped] == [str(bad)]
    assert [(split.clips, split.missing) for split in done.splits] == [(8, 0), (2, 1), (3, 0)]


def test_output_is_deterministic(tree, tmp_path, written):
    for out in "ab":
        voxceleb1.prepare(tree, tmp_path / out)
    assert written(tmp_path / "a") == written(tmp_path / "b")


@pytest.mark.parametrize(
    ("gone", "words"),
    [
        (["."], "no such folder; expected VoxCeleb1"),
        (["iden_split.txt"], "no iden_split.txt in it; expected VoxCeleb1"),
        (["dev", "test"], r"no dev/wav/id\* in it; expected VoxCeleb1"),
    ],
)
def test_wrong_folder_is_reported(tree, tmp_path, gone, words):
    for name in gone:
        (tree / name).resolve().rename(tmp_path / f"elsewhere {name}")
    with pytest.raises(OSError, match=words) as error:
        voxceleb1.prepare(tree, tmp_path / "out")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("4 id10001/1zcIwhmdeo4/00001.wav", "iden_split.txt:16: .* is not a split"),
        ("id10001/1zcIwhmdeo4/00001.wav", "iden_split.txt:16: .* is not a split"),
        ("3 id10001/1zcIwhmdeo4/00001.wav", "00001.wav: is listed in train and again in test"),
    ],
)
def test_invalid_list_is_reported(tree, tmp_path, line, words):
    with (tree / "iden_split.txt").open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(ValueError, match=words):
        voxceleb1.prepare(tree, tmp_path / "out")
