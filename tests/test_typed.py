"""``py.typed``: programs that use the package are type-checked against it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import mae_ast

PACKAGE = Path(mae_ast.__file__).parent
REPOSITORY = Path(__file__).parents[1]
CACHE = REPOSITORY / ".mypy_cache"

PROGRAM = """
import torch
import mae_ast
from mae_ast.core.models.config import MaeAstConfig
from mae_ast.core.models.mae_ast import MaeAst

features = mae_ast.load("model.pt").extract_features("a.wav", layers=[1])
pooled: torch.Tensor = features.pooled
reveal_type(features.hidden_states)
network = MaeAst(MaeAstConfig(encoder_layers=2))
reveal_type(network.config)
mae_ast.load(3)
"""


@pytest.mark.slow
def test_programs_are_checked_against_the_annotations(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    assert (PACKAGE / "py.typed").is_file()
    # mypy does not follow the import hook of an editable installation.
    environment = {**os.environ, "MYPYPATH": str(PACKAGE.parent)}
    # With the settings of this project, which are strict, and the cache of `make type`.
    project = ["--config-file", REPOSITORY / "pyproject.toml", "--cache-dir", CACHE]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *project, "program.py"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        check=False,
    )
    assert "Revealed type is" in done.stdout, done.stdout + done.stderr
    assert "Tensor" in done.stdout
    assert "MaeAstConfig" in done.stdout
    errors = [line for line in done.stdout.splitlines() if ": error:" in line]
    assert len(errors) == 1, errors
    assert 'incompatible type "int"' in errors[0]
