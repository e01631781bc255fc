"""``mae-ast probe``, run as a person runs it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mae_ast import convert
from mae_ast.core.labels import Labels, write_clip_labels
from mae_ast.core.manifest import write_manifest
from mae_ast.pretrained import PretrainedMaeAst

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
    convert.to_released_file(PretrainedMaeAst(small_config(), "random_mask"), tmp_path / "a.pt")
    return tmp_path


@pytest.fixture
def run(mae_ast_command, folder):
    return partial(mae_ast_command, "probe", folder / "a.pt", folder / "train.tsv")


def test_a_table_of_three(run):
    out, message = run("--layers", "2", "--group", "_([^_]+)_")
    assert not message
    title, head, *rows = out.splitlines()
    assert title == "accuracy on 24 clips"
    assert head.split() == ["linear", "nearest", "layer"]
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
def test_wrong_input_is_one_line(run, arguments, words):
    _, message = run(*arguments)
    assert message.startswith("mae-ast: error: ")
    assert words in message


def test_missing_labels_are_one_line(run, folder):
    (folder / "train.lbl").unlink()
    _, message = run()
    assert "train.lbl" in message
