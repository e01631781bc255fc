"""Data of a study: a file of this package that says how to make it, or a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from mae_ast.cli.study import study
from mae_ast.study.data import find_data


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


def test_missing_data_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="data=clips: no such folder; known data are demo"):
        find_data("clips")
    touch(tmp_path / "clips", "train.tsv")
    with pytest.raises(ValueError, match=r"clips/valid\.tsv: no such file"):
        find_data("clips")
    with pytest.raises(ValueError, match="scale=paper: data=FOLDER is needed, with train"):
        study("ssast", ["scale=paper"])
