"""Look up the dataclasses of a run's settings, and explain invalid keys and values."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from fairseq.dataclass.configs import FairseqConfig
from fairseq.models import ARCH_MODEL_NAME_REGISTRY, MODEL_DATACLASS_REGISTRY
from fairseq.registry import REGISTRIES
from fairseq.tasks import TASK_DATACLASS_REGISTRY
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mae_ast.trainer.presets import NAMED_SECTIONS, compose_preset, search_path_of

_WRONG_TYPE = re.compile(
    r"alue '(.*)' (?:of type '\w+' could not be converted to |is not a valid |for field of type ')"
    r"(Integer|int|Float|float|bool)\b"
)
_TYPES = {
    **dict.fromkeys(("Integer", "int"), "a whole number"),
    **dict.fromkeys(("Float", "float"), "a number"),
    "bool": "true or false",
}


def registered(section: str) -> Mapping[str, type[Any]]:
    """Return the registered dataclasses of ``section.*`` by their ``_name``."""
    if section == "task":
        found: Mapping[str, type[Any]] = TASK_DATACLASS_REGISTRY
    elif section == "model":
        found = MODEL_DATACLASS_REGISTRY
    else:
        found = REGISTRIES[section]["dataclass_registry"]
    return found


def defaults_of(section: str, name: str | None) -> dict[str, Any]:
    """Return the keys of a section and their defaults; empty if the section is unknown.

    Args:
        section: section such as "model".
        name: value of ``_name`` in one of ``NAMED_SECTIONS``.
    """
    if section in NAMED_SECTIONS:
        if section == "model":
            name = ARCH_MODEL_NAME_REGISTRY.get(name, name)
        kind = registered(section).get(name or "")
    else:
        field = FairseqConfig.__dataclass_fields__.get(section)
        kind = None if field is None else field.default
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        return {}
    return {field.name: _default(field) for field in dataclasses.fields(kind)}


def drop_defaults_of_others(cfg: Any) -> None:
    """Drop keys of the optimizer and the schedule that a preset lists for another ``_name``.

    With ``lr_scheduler._name=cosine``, a preset made for another schedule still lists the keys of
    that schedule. Only keys at their default value are dropped, so that no setting is ignored. (A
    preset is for one model; another ``model._name`` is refused.)
    """
    for section in ("optimizer", "lr_scheduler"):
        settings = cfg.get(section)
        name = settings.get("_name") if OmegaConf.is_dict(settings) else None
        own = defaults_of(section, name)
        if not own:
            continue
        values: Any = OmegaConf.to_container(settings, resolve=False)
        OmegaConf.set_struct(settings, False)
        for key, value in values.items():
            others = (defaults_of(section, other) for other in registered(section))
            if key not in own and any(key in each and each[key] == value for each in others):
                del settings[key]


def explain_composition(error: Exception, file: Path, overrides: Sequence[str]) -> str:
    """Turn an error of composing a preset into one line that says what to type.

    Args:
        error: error raised while settings were composed or merged with their dataclasses.
        file: YAML file of the preset.
        overrides: hydra's overrides; only the search path is used.
    """
    preset: Any = {}
    with suppress(HydraException, OmegaConfBaseException):
        preset = compose_preset(file, search_path_of(overrides))
    return explain(error, preset, file.name)


def explain(error: Exception, preset: Any, file: str = "the YAML file") -> str:
    """Turn an error of hydra or omegaconf into one line that says what to type.

    Args:
        error: error raised while settings were composed or merged with their dataclasses.
        preset: settings of the YAML file, whose ``_name`` may be overridden.
        file: name of that file, for the message.
    """
    if str(error).startswith("Error merging override"):  # hydra's; omegaconf's says why
        error = error.__cause__ or error  # type: ignore[assignment]
    text = " ".join(str(error).split())
    missing = re.search(r"Could not override '([\w.]+)'", text)
    taken = re.search(r"An item is already at '([\w.]+)'", text)
    unknown = re.search(r"Key '(\w+)' (?:not in|is not in)", text)
    if missing:
        return _explain_missing(missing[1], preset, file)
    if taken:
        return f"+{taken[1]}: {file} lists this key already; type {taken[1]}=VALUE, without the +"
    full_key = _full_key(error)
    if unknown and full_key:
        return _no_such_key(full_key, preset)
    reason = re.split(r" (?:full_key|object_type|reference_type)[:=]", text)[0]
    if full_key and (wrong_type := _WRONG_TYPE.search(reason)):
        return _explain_type(full_key, wrong_type[1], wrong_type[2], preset)
    if full_key and "is not a ListConfig" in reason:
        value = getattr(error, "value", "")
        return f"{full_key}={value}: a list is needed, such as [{value}]"
    return f"{full_key}: {reason}" if full_key else reason


def _full_key(error: Exception) -> str | None:
    """Return ``section.key``; in a merge with a dataclass, omegaconf names only the key."""
    key: str | None = getattr(error, "full_key", None)
    if key and "." not in key:
        for section in NAMED_SECTIONS:
            if getattr(error, "object_type", None) in registered(section).values():
                return f"{section}.{key}"
    return key


def _explain_type(full_key: str, value: str, kind: str, preset: Any) -> str:
    section, _, key = full_key.partition(".")
    known = defaults_of(section, _name(preset, section))
    is_optional = key in known and known[key] is None
    needed = f"{_TYPES[kind]} or null" if is_optional else _TYPES[kind]
    return f"{full_key}={'null' if value == 'None' else value}: {needed} is needed"


def _explain_missing(full_key: str, preset: Any, file: str) -> str:
    section, _, key = full_key.partition(".")
    known = defaults_of(section, _name(preset, section))
    if key in known:
        return f"{full_key}: {file} does not list this key; type +{full_key}=VALUE to add it"
    return _no_such_key(full_key, preset)


def _no_such_key(full_key: str, preset: Any) -> str:
    section, _, key = full_key.partition(".")
    name = _name(preset, section)
    known = defaults_of(section, name)
    if not known:
        every = FairseqConfig.__dataclass_fields__
        sections = difflib.get_close_matches(section, every, 1)
        if not key:  # a key without its section
            having = (each for each in every if section in defaults_of(each, _name(preset, each)))
            sections = [f"{each}.{section}" for each in having] or sections
        return f"{full_key}: there is no such setting{_meant(sections, '')}"
    whose = f" of {section}._name={name}" if section in NAMED_SECTIONS else ""
    close = difflib.get_close_matches(key, known, 1)
    return f"{full_key}: there is no such setting{whose}{_meant(close, f'{section}.')}"


def _meant(close: list[str], prefix: str) -> str:
    return f"; did you mean {prefix}{close[0]}?" if close else ""


def _name(preset: Any, section: str) -> str | None:
    settings = preset.get(section)
    return settings.get("_name") if isinstance(settings, Mapping) else None


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    return field.default_factory() if callable(field.default_factory) else None
