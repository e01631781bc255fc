"""Record the settings of every preset: ``python -m tests.trainer.preset_settings``.

Run it after a change of a preset or of a key, and read the difference in ``preset_settings.json``.
The file has the settings that the YAML files of each preset set, as ``section.key``: those of most
presets of a kind once, under ``shared``, and what each preset sets or lacks instead.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from mae_ast.trainer.presets import compose_preset

CONFIG = Path(__file__).parents[2] / "config"
RECORD = Path(__file__).with_suffix(".json")
KINDS = ("pretrain", "finetune")

Settings = dict[str, Any]  # by section.key


def preset_files() -> list[Path]:
    """Return the YAML files of all presets."""
    return sorted(path for kind in KINDS for path in (CONFIG / kind).glob("*.yaml"))


def flatten(settings: Any) -> Settings:
    """Return composed settings by ``section.key``; sections that are not set are omitted."""
    sections = OmegaConf.to_container(settings, resolve=False, enum_to_str=True)
    return {
        f"{section}.{key}": value
        for section, values in sections.items()
        if isinstance(values, Mapping)
        for key, value in values.items()
    }


def read() -> dict[tuple[str, str], Settings]:
    """Return the recorded settings of each preset, by its kind and name."""
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    return {
        (kind, name): {
            **{key: value for key, value in shared.items() if key not in preset["lacks"]},
            **preset["sets"],
        }
        for kind, (shared, presets) in record.items()
        for name, preset in presets.items()
    }


def write() -> None:
    """Record the settings of all presets."""
    kinds = {kind: _compose_all(kind) for kind in KINDS}
    RECORD.write_text(_dump({kind: _compact(found) for kind, found in kinds.items()}) + "\n")


def _compose_all(kind: str) -> dict[str, Settings]:
    """Compose the presets of a kind without fairseq's defaults, which depend on the machine."""
    files = [path for path in preset_files() if path.parent.name == kind]
    return {path.stem: flatten(compose_preset(path)) for path in files}


def _compact(presets: Mapping[str, Settings]) -> tuple[Settings, dict[str, Any]]:
    """Return the settings of most presets, and what each sets or lacks instead."""
    shared = {}
    for key in sorted(set().union(*presets.values())):
        (value, count), *_ = Counter(
            json.dumps(settings[key]) for settings in presets.values() if key in settings
        ).most_common(1)
        present = sum(key in settings for settings in presets.values())
        if present > len(presets) / 2 and count > 1:
            shared[key] = json.loads(value)
    return shared, {
        name: {
            "sets": {
                key: value
                for key, value in sorted(settings.items())
                if key not in shared or json.dumps(shared[key]) != json.dumps(value)
            },
            "lacks": [key for key in shared if key not in settings],
        }
        for name, settings in presets.items()
    }


def _dump(value: Any, depth: int = 0) -> str:
    """Write JSON with one setting per line and lists on one line."""
    if isinstance(value, tuple):
        lines = [_dump(each, depth + 1) for each in value]
    elif isinstance(value, dict) and value:
        lines = [f"{json.dumps(key)}: {_dump(each, depth + 1)}" for key, each in value.items()]
    else:
        return json.dumps(value)
    opening, closing = "[]" if isinstance(value, tuple) else "{}"
    indent = " " * depth
    inner = f",\n{indent} ".join(lines)
    return f"{opening}\n{indent} {inner}\n{indent}{closing}"


if __name__ == "__main__":
    write()
