"""Read the presets of ``config/``."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from mae_ast.trainer import presets

FOLDER = Path(__file__).parents[2] / "config"


@cache
def read_preset(name: str) -> dict[str, Any]:
    """Return a preset's sections; ``name`` is its path without suffix, ``pretrain/mae_ast``."""
    return presets.read_preset(FOLDER / f"{name}.yaml")


def preset_names() -> list[str]:
    """Return the names of all presets but the demo's."""
    names = (path.relative_to(FOLDER).with_suffix("") for path in FOLDER.glob("*/*.yaml"))
    return sorted(name.as_posix() for name in names if name.stem != "demo")
