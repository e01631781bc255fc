"""``mae-ast demo`` and ``python -m scripts.demo``, and that the demo is not installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from setuptools import find_packages

import mae_ast
from scripts.demo.corpus import DESCRIPTION_FILE, description

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture
def finished_run(tmp_path):
    """Demo folder with a run on the corpus of ``--takes 1``."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / DESCRIPTION_FILE).write_text(description(takes=1))
    return tmp_path


@pytest.mark.parametrize("options", [(), ("--corpus-only",)])
def test_command_runs_the_demo_of_the_checkout(mae_ast_command, finished_run, options):
    _, message = mae_ast_command("demo", "--out", finished_run, "--takes", 2, *options)
    assert str(finished_run / "run") in message
    assert "--takes 2" in message
    assert not (finished_run / "corpus").exists()


def test_module_runs_the_same_command(finished_run):
    command = [sys.executable, "-m", "scripts.demo", "--out", str(finished_run), "--takes", "2"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "--takes 2" in done.stderr


def test_installed_package_names_the_checkout_as_missing(mae_ast_command, monkeypatch, tmp_path):
    monkeypatch.setattr(mae_ast, "__file__", str(tmp_path / "mae_ast" / "__init__.py"))
    _, message = mae_ast_command("demo", "--out", tmp_path / "demo")
    assert "checkout" in message
    assert "scripts/demo" in message
    assert list(tmp_path.iterdir()) == []


def test_wheel_has_no_scripts():
    """The patterns are those of setup.py."""
    assert 'find_packages(include=["mae_ast", "mae_ast.*"])' in (REPOSITORY / "setup.py").read_text(
        encoding="utf-8"
    )
    packages = find_packages(str(REPOSITORY), include=["mae_ast", "mae_ast.*"])
    assert "mae_ast.core" in packages
    assert not [name for name in packages if "demo" in name or "scripts" in name]
