"""Benchmark programs: ``--help`` of each, and a tiny run of one that needs no other software."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import pytest

FOLDER = Path(__file__).parents[2] / "scripts" / "benchmarks"
PROGRAMS = sorted(path.name for path in FOLDER.glob("*.py") if path.stem != "measuring")


def test_ten_programs():
    assert len(PROGRAMS) == 10


@pytest.mark.parametrize("name", PROGRAMS)
def test_help_describes_every_option(name, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr("sys.argv", [name, "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(FOLDER / name), run_name="__main__")
    assert end.value.code == 0
    usage, _, options = capsys.readouterr().out.partition("options:\n")
    assert f"usage: {name}" in usage
    for option in options.split("\n  -")[1:]:
        words = option.split()
        assert len(words) > 3, option


def test_superb_demo_needs_the_demo(tmp_path, monkeypatch, capsys):
    name = "superb_demo.py"
    monkeypatch.syspath_prepend(str(FOLDER))
    out = tmp_path / "out"
    monkeypatch.setattr("sys.argv", [name, str(tmp_path / "demo"), "--out", str(out)])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(FOLDER / name), run_name="__main__")
    assert end.value.code == 2
    message = capsys.readouterr().err
    assert f"{tmp_path / 'demo'}" in message
    assert "make demo" in message
    assert not out.exists()


def test_local_attention_writes_its_table_and_plot(tmp_path):
    command = [sys.executable, str(FOLDER / "local_attention.py"), "--results", str(tmp_path)]
    tiny = ["--seconds", "1", "--layers", "1", "--turns", "1"]
    done = subprocess.run([*command, *tiny], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (written,) = tmp_path.glob("local_attention_*.md")
    text = written.read_text(encoding="utf-8")
    assert "python scripts/benchmarks/local_attention.py" in text
    rows = [line.split(" | ")[:3] for line in text.splitlines() if line.startswith(("| g", "| l"))]
    assert rows == [["| global", "1", "48"], ["| local", "1", "48"]]
    assert matplotlib.image.imread(written.with_suffix(".png")).std() > 0.01
