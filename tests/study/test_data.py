"""Data of a study: a file of this package that says how to make it, or a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from mae_ast.cli.study import study
from mae_ast.core.io.manifest import write_manifest
from mae_ast.study.data import StudyData, find_data
from mae_ast.study.definition import read_study


def touch(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def test_labels_of_a_folder_are_its_probe(tmp_path):
    folder = touch(tmp_path / "clips", "train.tsv", "valid.tsv")
    assert find_data(str(folder)).probes == ()
    touch(folder, "labels.csv", "train.lbl", "valid.lbl")
    (probe,) = find_data(str(folder)).probes
    assert (probe.name, probe.train, probe.test) == (
        "labels",
        folder / "train.tsv",
        folder / "valid.tsv",
    )
    touch(folder, "test.lbl")
    assert find_data(str(folder)).probes[0].test == folder / "test.tsv"


def test_data_of_the_package_says_how_to_make_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ValueError, match=r"corpus/train\.tsv: no such file; 'mae-ast demo --corpus-only' makes"
    ):
        find_data("demo")
    touch(tmp_path / "demo" / "corpus", "train.tsv", "valid.tsv")
    with pytest.raises(
        ValueError, match=r"corpus/test\.tsv: no such file; 'mae-ast demo --corpus-only' makes"
    ):
        find_data("demo")
    touch(tmp_path / "demo" / "corpus", "test.tsv")
    (probe,) = find_data("demo").probes
    assert probe.name == "words"
    assert probe.group is not None
    assert probe.group.search("clips/yes_enf1_02.flac")[1] == "enf1"


def test_data_of_the_package_may_have_overrides_of_all_cells(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("", "language", "family"):
        touch(tmp_path / "real" / folder, "train.tsv", "valid.tsv", "test.tsv")
    data = find_data("real")
    assert "task.max_sample_size=16000" in data.overrides
    before = read_study("decoder", 1)
    after = before.on(data.overrides)
    assert after.cells[0].overrides == (*data.overrides, *before.cells[0].overrides)


def test_clips_shorter_than_a_patch_are_omitted_for_all(tmp_path):
    lengths = {"a.wav": 16_000, "b.wav": 3_000, "c.wav": 3_200, "d.wav": 9_000}
    rows = [(name, length, 16_000) for name, length in lengths.items()]
    touch(tmp_path, *lengths)
    write_manifest(tmp_path / "valid.tsv", ".", rows)
    data = StudyData(tmp_path, ())
    names = [Path(data.valid(10).row_path(row)).name for row in range(3)]
    assert names == ["a.wav", "c.wav", "d.wav"]
    assert len(data.valid(2)) == 2


def test_labels_that_no_probe_can_be_fitted_to_are_refused_before_training(tmp_path):
    for split in ("train", "test"):
        write_manifest(
            tmp_path / f"{split}.tsv", ".", [(f"{split}{n}.wav", 16_000, 16_000) for n in "12"]
        )
        for n in "12":
            (tmp_path / f"{split}{n}.wav").touch()
        (tmp_path / f"{split}.lbl").write_text("dog\ndog\n")
    (tmp_path / "labels.csv").write_text("index,mid,display_name\n0,dog,Dog\n1,cat,Cat\n")
    touch(tmp_path, "valid.tsv")
    with pytest.raises(ValueError, match="all have the same labels"):
        find_data(str(tmp_path)).check(100)


def test_missing_data_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="data=clips: no such folder; known data are demo"):
        find_data("clips")
    touch(tmp_path / "clips", "train.tsv")
    with pytest.raises(ValueError, match=r"clips/valid\.tsv: no such file"):
        find_data("clips")
    with pytest.raises(ValueError, match="scale=paper: data=FOLDER is needed, with train"):
        study("ssast", ["scale=paper"])
