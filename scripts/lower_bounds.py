"""Print the lower bounds of pyproject.toml's dependencies as constraints for pip.

    python scripts/lower_bounds.py > lower-bounds.txt
    python scripts/lower_bounds.py --light > light.txt

The second command leaves out the extras, which may need newer versions. Dependencies of
dependencies are left to pip.
"""

from __future__ import annotations

import re
import sys
import tomllib
from itertools import chain
from pathlib import Path

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
_BOUND = re.compile(r"([A-Za-z0-9_.-]+)\s*(?:>=|==)\s*([0-9.]+)")


def lower_bounds(pyproject: str, light: bool = False) -> list[str]:
    """Return ``name==version`` for each requirement of the build, the project and its extras.

    Of several bounds of one package, the highest counts.

    Args:
        pyproject: contents of a pyproject.toml.
        light: leave out the extras.

    Raises:
        ValueError: a requirement has no lower bound.
    """
    tables = tomllib.loads(pyproject)
    project = tables["project"]
    groups = [tables["build-system"]["requires"], project["dependencies"]]
    if not light:
        groups += project["optional-dependencies"].values()
    bounds: dict[str, str] = {}
    for requirement in chain.from_iterable(groups):
        if requirement.startswith(f"{project['name']}["):
            continue  # other extras
        bound = _BOUND.match(requirement)
        if bound is None:
            raise ValueError(f"pyproject.toml: {requirement!r} has no lower bound; write NAME>=1.2")
        name, version = bound.groups()
        bounds[name] = max(bounds.get(name, version), version, key=_numbers)
    return [f"{name}=={version}" for name, version in bounds.items()]


def _numbers(version: str) -> list[int]:
    return [int(number) for number in version.split(".")]


if __name__ == "__main__":
    text = PYPROJECT.read_text(encoding="utf-8")
    print("\n".join(lower_bounds(text, light="--light" in sys.argv)))
