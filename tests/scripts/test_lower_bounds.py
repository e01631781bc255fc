"""The constraints that ``make test-oldest`` installs."""

from __future__ import annotations

import re
import runpy
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
lower_bounds = runpy.run_path(str(REPOSITORY / "scripts" / "lower_bounds.py"))["lower_bounds"]

PROJECT = """
[build-system]
requires = ["setuptools>=77,<81"]
[project]
name = "mae-ast"
dependencies = ["torch>=2.11", "hydra-core == 1.3.2"]
[project.optional-dependencies]
onnx = ["onnx>=1.18,<2", "torch>=2.12"]
train = ["fairseq-fixed==0.12.3.1; python_version < '3.13'", "torch>=2.6"]
all = ["mae-ast[train,onnx]"]
"""


def test_lower_bounds_pin_the_build_the_project_and_its_extras() -> None:
    assert lower_bounds(PROJECT) == [
        "setuptools==77",
        "torch==2.12",
        "hydra-core==1.3.2",
        "onnx==1.18",
        "fairseq-fixed==0.12.3.1",
    ]


def test_lower_bounds_of_a_light_installation_leave_out_the_extras() -> None:
    found = lower_bounds(PROJECT, light=True)
    assert found == ["setuptools==77", "torch==2.11", "hydra-core==1.3.2"]


def test_a_requirement_without_a_lower_bound_is_refused() -> None:
    with pytest.raises(ValueError, match="'torch<3' has no lower bound"):
        lower_bounds(PROJECT.replace("torch>=2.11", "torch<3"))


def test_each_requirement_of_the_project_has_a_lower_bound() -> None:
    assert len(lower_bounds((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))) > 20


def test_make_venv_installs_all_extras() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    (installed,) = re.findall(r"^EXTRAS := (.*)$", makefile, re.MULTILINE)
    names = installed.split(",")
    for name in names:  # some consist of others: mae-ast[train,superb]
        for part in re.findall(r"mae-ast\[(.*)\]", " ".join(extras[name])):
            names += part.split(",")
    assert set(names) == set(extras)


def test_constraints_pin_each_requirement_of_the_project() -> None:
    bounds = lower_bounds((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.partition("==")[0].lower() for line in lines if "==" in line}
    assert {bound.partition("==")[0].lower() for bound in bounds} <= pinned
    assert "torchvision" in pinned  # without it, timm cannot be imported
