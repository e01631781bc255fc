"""Class folders and tables become manifests without leaks between splits."""

from __future__ import annotations

import csv
import os
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from mae_ast.cli.main import app
from mae_ast.core.io.labels import Labels
from mae_ast.core.io.manifest import Manifest
from mae_ast.finetune.crossvalidation import find_folds
from mae_ast.prepare.class_folders import find_clips

RATE = 8_000
SPLITS = ("train", "valid", "test")
Rows = Callable[[Path, str], dict[str, tuple[str, ...]]]


def write_noise(path: Path, seed: int, seconds: float = 0.25) -> Path:
    """Write a sound whose bytes differ from those of other seeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = 0.1 * np.random.default_rng(seed).standard_normal(round(seconds * RATE))
    soundfile.write(path, noise, RATE, subtype="PCM_16")
    return path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., tuple[str, str, str]]:
    """Run ``mae-ast prepare``; return its stdout, stderr and error message."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: Any) -> tuple[str, str, str]:
        done = CliRunner().invoke(app, ["prepare", *map(str, arguments)])
        error = done.exception
        assert error is None or isinstance(error, ValueError | OSError), error
        assert "\n" not in str(error or "")
        return done.stdout, done.stderr, str(error or "")

    return run


@pytest.fixture
def sounds(tmp_path: Path) -> Path:
    """Three classes of 20 clips by five speakers, with other files among them."""
    folder = tmp_path / "my sounds"
    for number in range(60):
        name = ("bark", "Rain, heavy", "wind")[number % 3]
        write_noise(folder / name / f"voice{number % 5}" / f"{number:02}.wav", number)
    (folder / "notes.txt").write_text("no audio")
    (folder / "bark" / "bad.wav").write_bytes(b"this is no sound")
    write_noise(folder / "wind" / "short.wav", 100, 0.1)
    write_noise(folder / "loose.wav", 101)
    return folder


def split_of(rows: Rows, out: Path) -> dict[str, str]:
    return {path: split for split in SPLITS for path in rows(out, split)}


# --- class folders --------------------------------------------------------------------------------


def test_class_folders_become_splits(run: Any, sounds: Path, rows: Rows) -> None:
    said, errors, error = run("folders", sounds)
    assert not error
    out = Path("manifests/my sounds")
    labels = Labels.read(out / "labels.csv")
    assert labels.names == ("Rain, heavy", "bark", "wind")
    assert labels.mids == ("Rain heavy", "bark", "wind")
    found = {split: rows(out, split) for split in SPLITS}
    assert sum(map(len, found.values())) == 60
    for clips in found.values():
        assert set(clips.values()) == {(mid,) for mid in labels.mids}
        for path, (mid,) in clips.items():
            assert Path(path).parts[-3].replace(",", "") == mid
    assert len(found["train"]) > 40
    assert Manifest.read(out / "train.tsv").root == str(sounds)
    assert "skipped 1 audio file outside class folders" in errors
    assert "skipped, by suffix: 1 .txt" in errors
    assert "skipped 2 files, listed in manifests/my sounds/left_out.txt" in errors
    assert "1 x shorter than 0.175 s" in errors
    assert "one label per clip; even classes: 20 clips each\n" in said
    with (out / "summary.csv").open(newline="") as file:
        header, *table = csv.reader(file)
    assert header == ["class", "train", "valid", "test", "clips", "hours"]
    for index, (name, *counts, hours) in enumerate(table):
        assert name == labels.names[index]
        of_splits = [
            sum(mids == (labels.mids[index],) for mids in found[split].values()) for split in SPLITS
        ]
        assert [int(count) for count in counts] == [*of_splits, 20]
        assert float(hours) == pytest.approx(20 * 0.25 / 3600, abs=1e-4)
    assert (out / "summary.png").read_bytes().startswith(b"\x89PNG")


def test_adding_files_moves_no_others(run: Any, sounds: Path, rows: Rows, tmp_path: Path) -> None:
    said, _, _ = run("folders", sounds, "--out", "before")
    assert "moved" not in said
    for number in range(200, 260):
        write_noise(sounds / "bark" / f"{number}.wav", number)
    for number in range(300, 330):
        write_noise(sounds / "new" / f"{number}.wav", number)
    run("folders", sounds, "--out", "after")
    before, after = (split_of(rows, tmp_path / name) for name in ("before", "after"))
    assert len(after) == len(before) + 90
    assert before.items() <= after.items()


@pytest.mark.parametrize("seed", range(3))
def test_groups_stay_in_one_split(
    run: Any, sounds: Path, rows: Rows, tmp_path: Path, seed: int
) -> None:
    """Files that cannot be used need no group: bark/bad.wav and wind/short.wav have none."""
    _, errors, error = run(
        "folders", sounds, "--group", r"(voice\d)/", "--seed", seed, "--out", "out"
    )
    assert not error
    assert "warning" not in errors
    splits: dict[str, set[str]] = {}
    for path, split in split_of(rows, tmp_path / "out").items():
        splits.setdefault(Path(path).parts[-2], set()).add(split)
    assert len(splits) == 5
    assert all(len(each) == 1 for each in splits.values())


def test_split_folders_are_kept_and_valid_is_drawn(
    run: Any, sounds: Path, rows: Rows, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    for split in ("Train", "test"):
        shutil.copytree(sounds / "bark", data / split / "bark")
        shutil.copytree(sounds / "wind", data / split / "wind")
    for number, path in enumerate((data / "test").rglob("*.wav")):
        write_noise(path, 500 + number)
    _, errors, error = run("folders", data, "--valid", 0.3)
    assert not error
    found = {split: rows(Path("manifests/data"), split) for split in SPLITS}
    for split, top in (("train", "Train"), ("valid", "Train"), ("test", "test")):
        assert all(f"/{top}/" in path for path in found[split])
        assert set(found[split].values()) == {("bark",), ("wind",)}
    assert len(found["test"]) == 42
    assert 5 <= len(found["valid"]) <= 20
    assert "warning" not in errors


def test_a_class_may_have_the_name_of_a_split(run: Any, tmp_path: Path) -> None:
    for number in range(20):
        write_noise(tmp_path / "vehicles" / ("train", "bus")[number % 2] / f"{number}.wav", number)
    said, _, error = run("folders", "vehicles")
    assert not error
    assert said.startswith("train: taken as a class, since other folders are there\n")
    assert Labels.read("manifests/vehicles/labels.csv").mids == ("bus", "train")


def test_tars_in_class_folders_are_read(tmp_path: Path) -> None:
    source = write_noise(tmp_path / "a.wav", 1)
    for name in ("cat", "dog"):
        (tmp_path / "data" / name).mkdir(parents=True)
        with tarfile.open(tmp_path / "data" / name / "shard.tar", "w") as tar:
            tar.add(source, "x/a.wav")
    clips = find_clips(tmp_path / "data").clips
    assert [clip.labels for clip in clips] == [("cat",), ("dog",)]
    assert clips[0].name.startswith("cat/shard.tar:")


@pytest.mark.parametrize("given", ["", "split", "fold"])
def test_groups_and_identical_files_in_two_splits_are_reported(
    run: Any, tmp_path: Path, given: str
) -> None:
    """Identical files are found by content; a group only leaks where the table has splits."""
    lines = [f"path,label,group{',' if given else ''}{given}"]
    for number in range(24):
        value = {"": "", "split": f",{SPLITS[number % 3]}", "fold": f",{number % 3}"}[given]
        write_noise(tmp_path / f"{number}.wav", number)
        name = "ab"[number // 3 % 2]
        lines.append(f"{number}.wav,{name},{'ann' if number < 2 else number}{value}")
    for number in range(6):
        shutil.copy(tmp_path / "0.wav", tmp_path / f"copy{number}.wav")
        value = {"": "", "split": f",{SPLITS[number % 3]}", "fold": f",{number % 3}"}[given]
        lines.append(f"copy{number}.wav,a,copy{number}{value}")
    (tmp_path / "clips.csv").write_text("\n".join(lines) + "\n")
    _, errors, error = run("table", "clips.csv", "--seed", 1)
    assert not error
    warnings = [line for line in errors.splitlines() if line.startswith("warning: ")]
    identical = re.compile(
        r"warning: 1 file with the same bytes in two splits, such as \S+\.wav in \w+ and "
        r"\S+\.wav in \w+; manifests/clips/duplicates\.txt lists"
    )
    assert sum(identical.match(line) is not None for line in warnings) == 1
    of_groups = [line for line in warnings if "1 group in two splits, such as 'ann': 0.wav" in line]
    assert len(of_groups) == bool(given)
    listed = Path("manifests/clips/duplicates.txt").read_text()
    assert set(listed.strip().split("\t")) == {"0.wav", *(f"copy{n}.wav" for n in range(6))}


def test_identical_files_with_other_labels_are_reported(run: Any, tmp_path: Path) -> None:
    for number in range(10):
        write_noise(tmp_path / "data" / "ab"[number % 2] / f"{number}.wav", number)
    shutil.copy(tmp_path / "data" / "a" / "0.wav", tmp_path / "data" / "b" / "again.wav")
    _, errors, _ = run("folders", "data")
    assert "warning: 1 " in errors
    assert "manifests/data/duplicates.txt\n" in errors or "duplicates.txt lists all" in errors
    assert "a/0.wav and b/again.wav have the same bytes, but different labels: a and b" in errors


def test_folds_are_those_of_crossvalidate(run: Any, sounds: Path, rows: Rows) -> None:
    _, _, error = run("folders", sounds, "--folds", 4, "--out", "folds")
    assert not error
    folders = find_folds(Path("folds"))
    assert [folder.name for folder in folders] == ["fold1", "fold2", "fold3", "fold4"]
    held_out = []
    for folder in folders:
        train, valid = rows(folder, "train"), rows(folder, "valid")
        assert not train.keys() & valid.keys()
        assert len(train | valid) == 60
        assert len(set(valid.values())) == 3
        held_out += valid
    assert len(set(held_out)) == len(held_out) == 60


def test_folds_and_splits_of_an_earlier_run_are_refused(run: Any, sounds: Path) -> None:
    """Their clips may be in another split now."""
    run("folders", sounds, "--folds", 3, "--out", "out")
    for arguments, left in (("--folds", 2), "fold3"), ((), "fold1"):
        error = run("folders", sounds, *arguments, "--out", "out")[2]
        assert error.startswith(f"out/{left}: exists from an earlier run and would remain among")
    run("folders", sounds, "--out", "splits")
    error = run("folders", sounds, "--folds", 2, "--out", "splits")[2]
    assert error.startswith("splits/train.tsv: exists from an earlier run")


def test_classes_with_too_few_clips_are_reported(run: Any, tmp_path: Path, rows: Rows) -> None:
    for number in range(30):
        write_noise(tmp_path / "data" / "many" / f"{number}.wav", number)
    for number in range(30, 32):
        write_noise(tmp_path / "data" / "few" / f"{number}.wav", number)
    write_noise(tmp_path / "data" / "Few" / "x.wav", 40)
    said, errors, _ = run("folders", "data")
    assert "valid has no clip of " in errors
    assert "classes 'Few' and 'few' differ in upper and lower case only" in errors
    assert set(rows(Path("manifests/data"), "train").values()) == {("many",), ("few",), ("Few",)}
    assert "uneven classes: the largest has 30 times the clips of the smallest" in said


def test_missing_matplotlib_is_one_line(
    run: Any, sounds: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    said, _, error = run("folders", sounds)
    assert not error
    assert said.endswith(
        "summary.csv; no summary.png: matplotlib is not installed: pip install 'mae-ast[train]'\n"
    )
    assert not Path("manifests/my sounds/summary.png").exists()
    assert Path("manifests/my sounds/summary.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["folders", "none"], "none: no such folder"),
        (["folders", "empty"], "empty: no audio files below it; found nothing"),
        (["folders", "flat"], "flat: has 1 audio file, but no folder for each class"),
        (["folders", "one"], "all clips are of one class, 'a'; expected two or more"),
        (["folders", "bad"], "none of 2 clips can be used; the first is .*cannot be read as audio"),
        (["folders", "my sounds", "--folds", 3, "--valid", 0.1], "--folds leaves no other splits"),
        (["folders", "my sounds", "--valid", 0.5, "--test", 0.5], "leave nothing for training"),
        (["folders", "my sounds", "--group", "(voice9)"], "does not match"),
        (["folders", "my sounds", "--group", "("], "is no regular expression"),
        (["folders", "clips.csv"], "clips.csv: is a file; .* use 'mae-ast prepare table'"),
        (["table", "group.csv", "--group", "(.)"], "has a column group already; drop --group"),
        (["table", "split.csv", "--folds", 2], "--folds 2: the clips have a split of their own"),
        (["table", "split.csv", "--test", 0.2], "--test 0.2: the clips have a split of their own"),
        (["table", "split.csv", "--valid", 0], "--valid 0: the clips have a split of their own"),
        (["table", "fold.csv", "--valid", 0.2], "--valid 0.2: the clips have a fold of their own"),
        (["table", "clips.csv"], "none of 1 clip can be used; the first is .*x.wav: no such file"),
        (["table", "one"], "one: is a folder; .* use 'mae-ast prepare folders'"),
        (["table", "clips.csv", "--column", "path"], "--column path: expected KEY=NAME"),
    ],
)
def test_invalid_data_is_refused(
    run: Any, sounds: Path, tmp_path: Path, arguments: list[Any], words: str
) -> None:
    (tmp_path / "empty").mkdir()
    write_noise(tmp_path / "flat" / "a.wav", 0)
    write_noise(tmp_path / "one" / "a" / "a.wav", 0)
    for name in "ab":
        (tmp_path / "bad" / name).mkdir(parents=True)
        (tmp_path / "bad" / name / "x.wav").write_bytes(b"this is no sound")
    (tmp_path / "clips.csv").write_text("path,label\nx.wav,a\n")
    (tmp_path / "group.csv").write_text("path,label,group\nx.wav,a,b\n")
    for name, values in (("split", ("train", "valid")), ("fold", (1, 2))):
        rows = [
            f"my sounds/{c}/voice{n}/0{n}.wav,{c},{v}"
            for c, n in (("bark", 0), ("wind", 2))
            for v in values
        ]
        (tmp_path / f"{name}.csv").write_text(f"path,label,{name}\n" + "\n".join(rows[::3]) + "\n")
    assert re.search(words, run(*arguments)[2])
    assert not Path("manifests").exists()


# --- tables ---------------------------------------------------------------------------------------


def test_segments_are_cut_without_copying(run: Any, tmp_path: Path) -> None:
    """Rows of a recording are segments of it, all of them in one split."""
    lines = ["path,label,start,end"]
    for day in range(12):
        write_noise(tmp_path / "days" / f"{day}.wav", day, 3.0)
        lines += [f"{day}.wav,{'ab'[part % 2]},{part},{part + 1}" for part in range(3)]
        lines.append(f"{day}.wav,b,1.5,")
    lines += ["0.wav,a,2.5,9", "0.wav,a,3,4", "0.wav,a,2.9,3"]
    (tmp_path / "events.csv").write_text("\n".join(lines) + "\n")
    said, errors, error = run("table", "events.csv", "--root", "days")
    assert not error
    assert "1 segment cut at the end of the file (such as 0.wav from 2.5 s to 9 s, of 3.00" in said
    assert "1 x starts after the end of the file (such as 0.wav from 3 s to 4 s)" in errors
    assert "1 x shorter than 0.175 s (such as 0.wav from 2.9 s to 3 s)" in errors
    seen: dict[str, set[str]] = {}
    found = []
    for split in SPLITS:
        text = Path(f"manifests/events/{split}.tsv").read_text().splitlines()
        assert text[0] == str(tmp_path / "days")
        for line in text[1:]:
            name, *numbers = line.split("\t")
            seen.setdefault(name, set()).add(split)
            found.append((name, *map(int, numbers)))
    assert len(found) == 49
    assert all(len(splits) == 1 for splits in seen.values())
    own = sorted(row[1:] for row in found if row[0] == "7.wav")
    assert own == [(8_000, RATE, at) for at in (0, 8_000, 16_000)] + [(12_000, RATE, 12_000)]
    assert ("0.wav", 4_000, RATE, 20_000) in found
    assert {path.suffix for path in Path("manifests/events").iterdir()} <= {
        *(".tsv", ".lbl", ".csv", ".png", ".txt")
    }


def test_segments_of_a_file_in_two_splits_are_reported(run: Any, tmp_path: Path) -> None:
    write_noise(tmp_path / "day.wav", 0, 3.0)
    rows = [f"day.wav,{'ab'[n % 2]},{n / 4},{n / 4 + 0.25},{SPLITS[n // 4]}" for n in range(12)]
    (tmp_path / "events.csv").write_text("path,label,start,end,split\n" + "\n".join(rows) + "\n")
    _, errors, error = run("table", "events.csv")
    assert not error
    assert "warning: segments of 1 file in two splits, such as day.wav from 0 s to 0.25 s" in errors
    assert "same bytes" not in errors


def test_several_labels_of_a_clip_are_written(run: Any, tmp_path: Path, rows: Rows) -> None:
    lines = ["path\tlabel\tsplit"]
    for number in range(6):
        write_noise(tmp_path / f"{number}.wav", number)
        label = ("a", "a|b", "b")[number % 3]
        lines.append(f"{number}.wav\t{label}\t{('train', 'dev')[number // 3]}")
    (tmp_path / "clips.tsv").write_text("\n".join(lines) + "\n")
    said, _, error = run("table", "clips.tsv", "--separator", "|")
    assert not error
    assert list(rows(Path("manifests/clips"), "train").values()) == [("a",), ("a", "b"), ("b",)]
    assert list(rows(Path("manifests/clips"), "valid").values()) == [("a",), ("a", "b"), ("b",)]
    assert not Path("manifests/clips/test.tsv").exists()
    assert "clips with several labels; even classes" in said


def test_segments_with_the_same_samples_are_listed_once(run: Any, tmp_path: Path) -> None:
    """Segments that end after the file are cut, and may then be the same."""
    write_noise(tmp_path / "day.wav", 0, 3.0)
    text = (
        "path,label,start,end\nday.wav,a,0,1\nday.wav,b,2,3\nday.wav,b,2,5\nday.wav,a,2.99999,9\n"
    )
    (tmp_path / "events.csv").write_text(text)
    said, errors, error = run("table", "events.csv", "--min-seconds", 0)
    assert not error
    assert "events/train.tsv: 2 clips" in said
    assert re.search(r"^b +1 +0 +0 +1 ", said, re.MULTILINE)
    assert "1 x has the same samples as day.wav from 2 s to 3 s (such as day.wav from 2" in errors
    assert "1 x shorter than 0 s (such as day.wav from 2.99999 s to 9 s)" in errors
    (tmp_path / "events.csv").write_text(text.replace("b,2,5", "a,2,5"))
    assert run("table", "events.csv")[2].startswith(
        "day.wav from 2 s to 5 s and day.wav from 2 s to 3 s: have the same samples"
    )


def test_class_folders_of_another_encoding_are_named(run: Any, tmp_path: Path) -> None:
    for name in ("tea", "cafe"):
        write_noise(tmp_path / "sounds" / name / "a.wav", len(name))
    (tmp_path / "sounds" / "cafe").rename(tmp_path / "sounds" / os.fsdecode(b"caf\xe9"))
    assert run("folders", "sounds")[2] == (
        r"label 'caf\udce9': is not UTF-8 text; rename it or its folder"
    )


def test_names_of_classes_are_no_formulas_and_empty_splits_are_named(
    run: Any, tmp_path: Path
) -> None:
    for name in ("$^$", "tea"):
        write_noise(tmp_path / "sounds" / name / "a.wav", len(name))
    _, errors, error = run("folders", "sounds")
    assert not error
    assert "warning: valid is empty, since each class needs a file (or group) for each" in errors
    assert "; fine-tuning needs valid.tsv\n" in errors
    assert Path("manifests/sounds/summary.png").stat().st_size > 1_000
