"""Keys of a study's YAML file, with their types; omegaconf checks them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import yaml
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mae_ast.core.io.first_line import first_line

_NEEDED = {  # by what omegaconf says
    "to Dict|is not a subclass of|is not a valid value for": "a mapping",
    "is not a ListConfig|with ListConfig": "a list",
    "to Float": "a number",
    "to string|type 'str'": "a text",
    "is not Optional": "a value",
}

# omegaconf reads the following annotations, and knows no unions in Python's newer notation.


@dataclass
class Scale:
    """Settings of all runs at one scale.

    Args:
        config: name of the preset.
        data: name of the data, or a folder; empty: ``data=`` is needed on the command line.
        overrides: overrides of the preset, ``KEY=VALUE``.
    """

    config: str = MISSING
    data: str = ""
    overrides: list[str] = field(default_factory=list)


@dataclass
class Also:
    """Further overrides of some combinations.

    Args:
        where: values of axes; a list selects any of its values.
        overrides: overrides of the preset, ``KEY=VALUE``.
    """

    where: dict[str, Any] = MISSING
    overrides: list[str] = MISSING


@dataclass
class Claim:
    """A comparison, see :class:`mae_ast.study.definition.Comparison`."""

    claim: str = MISSING
    measure: str = MISSING
    of: dict[str, Any] = MISSING
    against: dict[str, Any] = MISSING
    form: str = MISSING
    margin: Optional[float] = None  # noqa: UP045
    paper: str = ""


@dataclass
class Paper:
    """The paper's own numbers.

    Args:
        source: where they are from.
        rows: rows of a table, by column.
    """

    source: str = MISSING
    rows: list[dict[str, Any]] = MISSING


@dataclass
class StudyFile:
    """A study at all scales.

    Args:
        title, finding, limits: its name, what the paper found, what a scale cannot show.
        scale: settings of each scale.
        axes: for each axis its values, each with overrides, or with those of each scale. A value
            that does not list a scale is omitted there.
        omit: combinations that are not run; a list selects any of its values.
        also: further overrides of some combinations.
        updates_to: accuracy of the probe during training whose first update is measured.
        tabulate: measures in the tables and the plot; empty: all.
        compare: the differences to look at.
        paper: the paper's own numbers.
    """

    title: str = MISSING
    finding: str = MISSING
    limits: str = ""
    scale: dict[str, Scale] = MISSING
    axes: dict[str, Any] = MISSING
    omit: list[dict[str, Any]] = field(default_factory=list)
    also: list[Also] = field(default_factory=list)
    updates_to: Optional[float] = None  # noqa: UP045
    tabulate: list[str] = field(default_factory=list)
    compare: list[Claim] = field(default_factory=list)
    paper: Optional[Paper] = None  # noqa: UP045


def read_file(path: Path) -> StudyFile:
    """Read a study's file.

    Raises:
        ValueError: it is not YAML, or a key is unknown, missing or of the wrong type.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: is not YAML ({first_line(error)})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: is not a study; a mapping with title, scale and axes is needed")
    merged = OmegaConf.structured(StudyFile)
    for key, value in _with_text_keys(content).items():
        try:
            merged = OmegaConf.merge(merged, OmegaConf.create({key: value}))
        except OmegaConfBaseException as error:
            raise ValueError(f"{path}: {_explain(key, error)}") from error
    if missing := sorted(OmegaConf.missing_keys(merged)):
        raise ValueError(f"{path}: {missing[0]}: is needed")
    found = OmegaConf.to_object(merged)
    assert isinstance(found, StudyFile)
    return found


def _with_text_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _with_text_keys(each) for key, each in value.items()}
    return [_with_text_keys(each) for each in value] if isinstance(value, list) else value


def _explain(key: str, error: OmegaConfBaseException) -> str:
    """Return a line that names the key and what is needed."""
    text = " ".join(str(error).split())
    full_key = error.full_key or key
    where = full_key if full_key.startswith(key) else f"{key}: {full_key}"
    if "not in '" in text:
        known = getattr(error.object_type, "__dataclass_fields__", {})
        return f"{where}: no such key; keys are {', '.join(known)}"
    for pattern, needed in _NEEDED.items():
        if re.search(pattern, text):
            return f"{where}: {needed} is needed"
    reason = re.split(r" (?:full_key|object_type|reference_type)[:=]", text)[0]
    return f"{where}: {reason}"
