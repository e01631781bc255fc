"""Print the lower bounds of pyproject.toml's dependencies as constraints for pip.

    python scripts/lower_bounds.py > lower-bounds.txt

Dependencies of dependencies are left to pip.
"""

from __future__ import annotations

import re
import tomllib
from itertools import chain
from pathlib import Path

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
_BOUND = re.compile(r"([A-Za-z0-9_.-]+)\s*(?:>=|==)\s*([0-9.]+)")


def lower_bounds(pyproject: str) -> list[str]:
    """Return ``name==version`` for each requirement of the build, the project and its extras.

    Args:
        pyproject: contents of a pyproject.toml.

    Raises:
        ValueError: a requirement has no lower bound.
    """
    tables = tomllib.loads(pyproject)
    project = tables["project"]
    groups = [
        tables["build-system"]["requires"],
        project["dependencies"],
        *project["optional-dependencies"].values(),
    ]
    bounds = []
    for requirement in chain.from_iterable(groups):
        bound = _BOUND.match(requirement)
        if bound is None:
            raise ValueError(f"pyproject.toml: {requirement!r} has no lower bound; write NAME>=1.2")
        bounds.append(f"{bound[1]}=={bound[2]}")
    return bounds


if __name__ == "__main__":
    print("\n".join(lower_bounds(PYPROJECT.read_text(encoding="utf-8"))))
