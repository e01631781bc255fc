"""``mae-ast prepare`` prints a report, and refuses wrong folders and options."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from mae_ast.cli import prepare
from mae_ast.prepare.speechcommands import WORDS
from tests.prepare.conftest import write_garbage, write_sound


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run the command in this process; return its stdout, its stderr and its error message."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments) -> tuple[str, str, str]:
        done = CliRunner().invoke(prepare.app, [*map(str, arguments)])
        error = done.exception
        assert error is None or isinstance(error, ValueError | OSError), error
        assert "\n" not in str(error or "")
        return done.stdout, done.stderr, str(error or "")

    return run


def test_command_prints_a_report(run, tmp_path):
    root = tmp_path / "v1"
    for word in WORDS[1]:
        for number in range(3):
            write_sound(root / word / f"{number}_nohash_0.wav", 36.0 if number == 0 else 0.1, 1000)
    (root / "validation_list.txt").write_text("".join(f"{w}/1_nohash_0.wav\n" for w in WORDS[1]))
    (root / "testing_list.txt").write_text(
        "".join(f"{w}/2_nohash_0.wav\n" for w in WORDS[1]) + "yes/3_nohash_0.wav\n"
    )
    write_garbage(root / "yes" / "1_nohash_0.wav")
    write_garbage(root / "bed" / "1_nohash_0.wav")
    out, report, error = run("speechcommands1", root, "--classes", 30, "--jobs", 2)
    assert not error
    assert out == (
        "manifests/speechcommands1/train.tsv: 30 clips, 0.30 h, 30 classes\n"
        "manifests/speechcommands1/valid.tsv: 28 clips, 0.00 h, 28 of 30 classes\n"
        "manifests/speechcommands1/test.tsv: 30 clips, 0.00 h, 30 classes, 1 missing\n"
    )
    assert "1 clip missing, listed in manifests/speechcommands1/missing.txt\n" in report
    assert "skipped 2 files, listed in manifests/speechcommands1/left_out.txt:\n" in report
    assert f"(such as {root / 'bed' / '1_nohash_0.wav'})" in report
    assert (
        Path("manifests/speechcommands1/missing.txt").read_text() == f"{root}/yes/3_nohash_0.wav\n"
    )


@pytest.mark.parametrize(
    "data_set", [command.__name__ for command in prepare.COMMANDS["Known data sets"]]
)
def test_every_data_set_refuses_a_wrong_folder(run, tmp_path, data_set):
    write_sound(tmp_path / "music" / "song.wav")
    for folder in ("music", "nowhere"):
        _, _, error = run(data_set, folder)
        assert error.startswith(f"{folder}: no ")
        assert "; expected " in error
        assert "http" in error
        assert not Path("manifests").exists()


def test_unsupported_number_of_classes_is_refused(run):
    error = run("speechcommands2", ".", "--classes", 30)[2]
    assert error.startswith("30 classes; Speech Commands version 2")
