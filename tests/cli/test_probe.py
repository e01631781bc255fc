"""``mae-ast probe``: its table, and its errors."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mae_ast.core.io.labels import Labels, write_clip_labels
from mae_ast.core.io.manifest import write_manifest
from mae_ast.evaluate import probe
from mae_ast.hub import export
from mae_ast.hub.load import PretrainedMaeAst

WORDS = ("low", "high")


@pytest.fixture
def folder(small_config, tmp_path) -> Path:
    rng = np.random.default_rng(0)
    for split, speakers in (("train", 10), ("valid", 6)):
        rows, labels = [], []
        for number in range(4 * speakers):
            word = WORDS[number % 2]
            tone = np.sin(np.arange(8_000) * (0.05 if word == "low" else 0.5))
            name = f"{word}_{split}{number // 4}_{number}.wav"
            noisy = 0.3 * tone + 0.02 * rng.standard_normal(8_000)
            soundfile.write(tmp_path / name, noisy, 16_000, subtype="PCM_16")
            rows.append((name, 8_000, 16_000))
            labels.append([word])
        write_manifest(tmp_path / f"{split}.tsv", ".", rows)
        write_clip_labels(tmp_path / f"{split}.lbl", labels)
    Labels(WORDS, WORDS).write(tmp_path / "labels.csv")
    export.to_released_file(PretrainedMaeAst(small_config(), "random_mask"), tmp_path / "a.pt")
    return tmp_path


@pytest.fixture
def run(mae_ast_command, folder):
    return partial(mae_ast_command, "probe", folder / "a.pt", folder / "train.tsv")


def test_probe_compares_a_model_with_two_baselines(run):
    out, message = run("--layers", "2", "--group", "_([^_]+)_")
    assert not message
    title, head, *rows = out.splitlines()
    assert title == "accuracy on 24 clips"
    assert head.split() == ["linear", "k-NN", "layer"]
    assert [row[:16].strip() for row in rows] == ["pretrained", "random weights", "mean log-mel"]
    assert rows[0].split()[-1] == "2"
    assert rows[2].split()[-3:] == ["100.0%", "100.0%", "-"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--layers", "a"), "--layers 'a'"),
        (("--layers", "3"), "layers [3]; the model has 1 to 2"),
        (("--group", "("), "--group '('"),
        (("--group", "x(y)z"), "train.tsv:2"),
        (("--test", "none.tsv"), "none.tsv: no such manifest"),
    ],
)
def test_invalid_input_ends_in_one_line(run, arguments, words):
    _, message = run(*arguments)
    assert message.startswith("mae-ast: error: ")
    assert words in message


def test_unreadable_clips_are_skipped(run, folder, caplog):
    rng = np.random.default_rng(1)
    soundfile.write(folder / "low_train0_0.wav", rng.standard_normal(100), 16_000)
    (folder / "high_valid0_1.wav").write_bytes(b"RIFFnothing")
    out, message = run("--layers", "2")
    assert not message
    assert out.splitlines()[0] == "accuracy on 23 clips"
    skipped = [record.getMessage() for record in caplog.records]
    assert [("train.tsv:2: skipped" in text) for text in skipped] == [True, False]
    assert "valid.tsv:3: skipped" in skipped[1]


def test_other_classes_are_refused(run, folder):
    other = folder / "other"
    other.mkdir()
    for name in ("valid.tsv", "valid.lbl"):
        (other / name).write_bytes((folder / name).read_bytes())
    (other / "valid.tsv").write_text(
        (folder / "valid.tsv").read_text().replace(".", str(folder), 1)
    )
    Labels(WORDS[::-1], WORDS[::-1]).write(other / "labels.csv")
    _, message = run("--test", other / "valid.tsv")
    assert "other/labels.csv: has other classes" in message


def test_one_class_is_refused_before_embedding(run, folder, monkeypatch):
    monkeypatch.setattr(probe, "embed", None)  # would end in a traceback
    (folder / "train.lbl").write_text("low\n" * 40)
    _, message = run()
    words = "train.tsv: the 32 of 40 clips that fit the probe all have the same labels"
    assert words in message
    (folder / "train.lbl").write_text("low,high\n" * 40)
    assert words in run()[1]
    # Each class is one speaker's, of whom one is held out.
    (folder / "train.lbl").write_text("low\nhigh\n" * 20)
    assert "20 of 40 clips" in run("--group", "(low|high)")[1]
    assert "train.tsv: all clips belong to one group" in run("--group", "(a)")[1]


def test_fewer_clips_than_k(run, folder):
    for name, count in (("train.tsv", 9), ("train.lbl", 8)):
        lines = (folder / name).read_text().splitlines(keepends=True)
        (folder / name).write_text("".join(lines[:count]))
    out, message = run("--layers", "2")
    assert not message
    assert out.startswith("accuracy on 24 clips")


def test_missing_labels_end_in_one_line(run, folder):
    (folder / "train.lbl").unlink()
    _, message = run()
    assert "train.lbl" in message
