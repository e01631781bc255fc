"""LibriSpeech: subsets become splits, and speakers become labels."""

from __future__ import annotations

from pathlib import Path

import pytest

from mae_ast.core.io.labels import Labels
from mae_ast.prepare import librispeech
from tests.prepare.conftest import write_garbage, write_sound

SPEAKERS = {
    "train-clean-100": ("103", "19"),
    "train-other-500": ("1006",),
    "dev-clean": ("84",),
    "test-other": ("367",),
}
SPLIT_OF = {"train": "train", "dev": "valid", "test": "test"}
UTTERANCES = 30


@pytest.fixture
def tree(tmp_path) -> Path:
    root = tmp_path / "data" / "LibriSpeech"
    sound = write_sound(tmp_path / "sound.flac").read_bytes()
    for subset, speakers in SPEAKERS.items():
        for speaker in speakers:
            chapter = root / subset / speaker / "198"
            chapter.mkdir(parents=True)
            names = [f"{speaker}-198-{number:04}" for number in range(UTTERANCES)]
            for name in names:
                (chapter / f"{name}.flac").write_bytes(sound)
            text = "".join(f"{name} NORTHANGER ABBEY\n" for name in names)
            (chapter / f"{speaker}-198.trans.txt").write_text(text)
    (root / "SPEAKERS.TXT").write_text(
        "; Some pipe(|) separated metadata about all the speakers\n"
        ";ID  |SEX| SUBSET           |MINUTES| NAME\n"
        "19   | F | train-clean-100  | 25.19 | Kara Shallenberg\n"
    )
    return root


def test_subsets_become_splits(tree, tmp_path, rows):
    out = tmp_path / "out"
    done = librispeech.prepare(tree.parent, out)
    for split in ("train", "valid", "test"):
        subsets = {Path(path).relative_to(tree).parts[0] for path in rows(out, split)}
        assert subsets == {name for name in SPEAKERS if SPLIT_OF[name.split("-")[0]] == split}
    assert [split.clips for split in done.splits] == [90, 30, 30]
    assert done.num_classes == 0
    assert {path.name for path in out.iterdir()} == {"train.tsv", "valid.tsv", "test.tsv"}


def test_speakers_become_labels(tree, tmp_path, rows):
    out = tmp_path / "out"
    librispeech.prepare(tree, out, speakers=True)
    splits = [rows(out, split) for split in ("train", "valid", "test")]
    together = splits[0] | splits[1] | splits[2]
    assert len(together) == sum(map(len, splits)) == 90
    assert together.keys() == {str(path) for path in tree.glob("train-*/*/*/*.flac")}
    assert all(Path(path).parts[-3] == mid for path, (mid,) in together.items())
    assert len(splits[0]) > 60
    assert set(splits[0].values()) == {("19",), ("103",), ("1006",)}
    labels = Labels.read(out / "labels.csv")
    assert labels == Labels(("19", "103", "1006"), ("Kara Shallenberg", "103", "1006"))


def test_utterance_keeps_its_split_when_others_are_added(tree, tmp_path, rows):
    librispeech.prepare(tree, tmp_path / "a", speakers=True)
    for number in range(100, 120):
        write_sound(tree / "train-clean-100" / "19" / "199" / f"19-199-{number:04}.flac")
    librispeech.prepare(tree, tmp_path / "b", speakers=True)
    for split in ("train", "valid", "test"):
        assert rows(tmp_path / "a", split).items() <= rows(tmp_path / "b", split).items()


def test_missing_and_unreadable_files_are_reported(tree, tmp_path):
    chapter = tree / "dev-clean" / "84" / "198"
    gone, bad = chapter / "84-198-0003.flac", write_garbage(chapter / "84-198-0004.flac")
    gone.unlink()
    done = librispeech.prepare(tree, tmp_path / "out")
    assert done.missing == (str(gone),)
    assert [path for path, _ in done.skipped] == [str(bad)]
    assert [(split.clips, split.missing) for split in done.splits] == [(90, 0), (28, 1), (30, 0)]


def test_missing_subset_gives_no_manifest(tree, tmp_path):
    (tree / "test-other").rename(tmp_path / "elsewhere")
    done = librispeech.prepare(tree, tmp_path / "out")
    assert [split.name for split in done.splits] == ["train", "valid"]
    assert done.notes == (f"{tree}: has no test-*, so no manifest was written for it",)


def test_stale_labels_in_the_output_folder_are_refused(tree, tmp_path):
    librispeech.prepare(tree, tmp_path / "out", speakers=True)
    with pytest.raises(ValueError, match=r"labels\.csv: exists from an earlier run"):
        librispeech.prepare(tree, tmp_path / "out")


def test_output_is_deterministic(tree, tmp_path, written):
    for out in "ab":
        librispeech.prepare(tree, tmp_path / out, speakers=True)
    assert written(tmp_path / "a") == written(tmp_path / "b")


@pytest.mark.parametrize(
    ("gone", "words"),
    [
        (["."], "no such folder; expected LibriSpeech"),
        (list(SPEAKERS), r"no \*-\*/\*/\*/\*.flac in it; expected LibriSpeech"),
        (["train-clean-100", "train-other-500"], r"no train-\* in it; expected LibriSpeech"),
    ],
)
def test_wrong_folder_is_reported(tree, tmp_path, gone, words):
    for name in gone:
        (tree / name).resolve().rename(tmp_path / f"elsewhere {name}")
    with pytest.raises(OSError, match=words) as error:
        librispeech.prepare(tree, tmp_path / "out")
    assert "\n" not in str(error.value)


def test_invalid_list_is_reported(tree, tmp_path):
    path = tree / "train-clean-100" / "19" / "198" / "19-198.trans.txt"
    path.write_text("19-198-0000 A\n18-198-0001 B\n")
    with pytest.raises(ValueError, match=r"19-198\.trans\.txt:2: '18-198-0001' is not an utter"):
        librispeech.prepare(tree, tmp_path / "out")
