"""Generate the configuration reference from the dataclasses registered with fairseq."""

from __future__ import annotations

import dataclasses
import typing
import warnings
from pathlib import Path
from typing import Any

from fairseq.criterions import CRITERION_DATACLASS_REGISTRY
from fairseq.models import MODEL_DATACLASS_REGISTRY
from fairseq.optim import OPTIMIZER_DATACLASS_REGISTRY
from fairseq.tasks import TASK_DATACLASS_REGISTRY

from mae_ast import plugin
from mae_ast.core.models.registry import SYSTEMS
from scripts.docs.presets import preset_names, read_preset
from scripts.docs.tables import code, prose, table

HEADER = """\
# Configuration

Each key is set as `key=value` after `mae-ast pretrain`, `finetune`, `crossvalidate` and
`fairseq-hydra-train`, or in a YAML file given as `--config`. Every preset in `config/pretrain` and
`config/finetune` lists all of its keys. These tables are generated from the code: *default* is the
value of a key that a file does not set; *Presets* are the values that presets set instead.

The sections `common`, `checkpoint`, `dataset`, `distributed_training`, `optimization` and
`lr_scheduler` are fairseq's own; [Pretrain](pretrain.md) lists the keys most often changed.

"""
SECTIONS = (
    ("task", TASK_DATACLASS_REGISTRY),
    ("model", MODEL_DATACLASS_REGISTRY),
    ("criterion", CRITERION_DATACLASS_REGISTRY),
    ("optimizer", OPTIMIZER_DATACLASS_REGISTRY),
)
TITLES = {
    ("task", "mae_ast_pretraining"): "Pretraining task",
    ("task", "mae_ast_classification"): "Classification task",
    **{("model", name): SYSTEMS[name].title for name in ("mae_ast", "ssast", "audio_mae", "ast")},
    ("model", "mae_ast_classifier"): "Classifier on a pretrained encoder",
    ("criterion", "mae_ast"): "Pretraining criterion",
    ("criterion", "mae_ast_classification"): "Classification criterion",
    ("optimizer", "mae_ast_adam"): "Adam",
    ("optimizer", "mae_ast_adamw"): "AdamW",
}

NOTES = {"task": "Sizes are in samples at 16 kHz.\n"}
MAX_NAMED = 6  # presets of one system that the tables name


def reference() -> str:
    """Describe the keys of all tasks, models, criterions and optimizers of this project."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of fairseq's use of hydra
        plugin.register()
    presets = {Path(name).name: read_preset(name) for name in preset_names()}
    parts = []
    for section, registry in SECTIONS:
        parts.append(f"## `{section}.*`\n")
        parts.append(NOTES.get(section, ""))
        titles = {name: title for (of, name), title in TITLES.items() if of == section}
        for name in (*titles, *(registry.keys() - titles.keys())):
            kind = registry[name]
            if kind.__module__.split(".")[0] == "mae_ast":
                title = titles.get(name, name)
                parts.append(f"### {title} {{ #{section}-{name} }}\n")
                parts.append(f"`{section}._name: {name}`\n")
                parts.append(_keys(section, name, kind, presets))
    return HEADER + "\n".join(parts)


def _keys(section: str, name: str, kind: Any, presets: dict[str, dict[str, Any]]) -> str:
    """Describe the keys of one dataclass; those that copy other sections are left to these."""
    used_by = {
        preset: content[section]
        for preset, content in presets.items()
        if content.get(section, {}).get("_name") == name
    }
    types = typing.get_type_hints(kind)
    rows = []
    for field in dataclasses.fields(kind):
        default = _default(field)
        if field.name == "_name" or str(default).startswith("${"):
            continue
        presets_text = _set_by(used_by, field.name, default)
        rows.append(
            [
                f"{code(f'{section}.{field.name}')}<br>{_type(types[field.name])}",
                "required" if default == "???" else code(_text(default)),
                prose(str(field.metadata.get("help", "")))
                + (f"<br>*Presets:* {presets_text}" if presets_text else ""),
            ]
        )
    return table(["key and type", "default", ""], rows)


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    return field.default_factory() if callable(field.default_factory) else "???"


def _set_by(used_by: dict[str, dict[str, Any]], key: str, default: Any) -> str:
    """List values other than the default, with the presets that set them."""
    values: dict[str, list[str]] = {}
    for preset, content in used_by.items():
        if key in content and _text(content[key]) not in (_text(default), "???"):
            values.setdefault(_text(content[key]), []).append(preset)
    if len(values) == 1 and len(next(iter(values.values()))) == len(used_by) > 1:
        return f"all: {code(next(iter(values)))}"
    if len(used_by) > MAX_NAMED:
        return ", ".join(code(value) for value in sorted(values, key=lambda v: (len(v), v)))
    return "; ".join(
        f"{', '.join(f'`{name}`' for name in names)}: {code(value)}"
        for value, names in values.items()
    )


def _type(hint: Any) -> str:
    """Name a type as a user writes its values."""
    members = [member for member in typing.get_args(hint) if member is not type(None)]
    if members and type(None) in typing.get_args(hint):
        return f"{_type(members[0])} or null"
    if typing.get_origin(hint) is list:
        return f"list of {_type(members[0])}"
    # Any: task.data, a path or, as its help says, a list of paths.
    names = {bool: "bool", int: "int", float: "float", str: "str", Any: "str"}
    return names.get(hint, "")


def _text(value: Any) -> str:
    """Write a value as in YAML."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return str(value).replace(" ", "")
    return f"{value:g}" if isinstance(value, float) else str(value)
