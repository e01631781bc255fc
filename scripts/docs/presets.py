"""Read the presets of ``config/``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

FOLDER = Path(__file__).parents[2] / "config"


def read_preset(name: str) -> dict[str, Any]:
    """Return a preset's sections; ``name`` is its path without suffix, ``pretrain/mae_ast``."""
    preset: Any = OmegaConf.to_container(OmegaConf.load(FOLDER / f"{name}.yaml"), resolve=False)
    return dict(preset)


def preset_names() -> list[str]:
    """Return the names of all presets but the demo's."""
    names = (path.relative_to(FOLDER).with_suffix("") for path in FOLDER.glob("*/*.yaml"))
    return sorted(name.as_posix() for name in names if name.stem != "demo")
