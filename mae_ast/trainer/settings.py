"""Settings of a run: the dataclasses of its sections, and messages about wrong keys and values."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Mapping
from typing import Any

from fairseq.dataclass.configs import FairseqConfig
from fairseq.models import ARCH_MODEL_NAME_REGISTRY, MODEL_DATACLASS_REGISTRY
from fairseq.registry import REGISTRIES
from fairseq.tasks import TASK_DATACLASS_REGISTRY
from omegaconf import OmegaConf

# Sections whose dataclass depends on ``_name``; hydra knows only the keys that a YAML file lists.
NAMED_SECTIONS = ("task", "model", "criterion", "optimizer", "lr_scheduler")


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
    """Return the keys of a section and their defaults; empty if it is unknown.

    Args:
        section: such as "model".
        name: its ``_name``, for one of ``NAMED_SECTIONS``.
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
    """Drop the optimizer's and schedule's keys that a preset lists for another ``_name``.

    With ``lr_scheduler._name=cosine`` a preset made for another schedule still lists that one's
    keys. Only keys at their default value are dropped, so no setting is ignored. (A model's preset
    is for that model alone, and refused for others.)
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


def explain(error: Exception, preset: Any, file: str = "the YAML file") -> str:
    """Turn an error of hydra or omegaconf into one line that says what to type.

    Args:
        error: raised while settings were composed, or merged with their dataclasses.
        preset: the settings that the file gives; their ``_name`` may be overridden.
        file: its name, for the message.
    """
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
    if "value 'none'" in reason.lower():
        reason += "; null unsets it"
    return f"{full_key}: {reason}" if full_key else reason


def _full_key(error: Exception) -> str | None:
    """Return ``section.key``; in a merge with a dataclass omegaconf names the key alone."""
    key: str | None = getattr(error, "full_key", None)
    if key and "." not in key:
        for section in NAMED_SECTIONS:
            if getattr(error, "object_type", None) in registered(section).values():
                return f"{section}.{key}"
    return key


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
        sections = difflib.get_close_matches(section, FairseqConfig.__dataclass_fields__, 1)
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
