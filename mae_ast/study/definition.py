"""Definition of a study, from YAML: axes of settings, seeds, and the differences to look at.

A cell is one run: a value of each axis, and a seed. A study file has

    title, finding, limits     texts: its name, what the paper found, what the scale cannot show
    scale: {NAME: {config, overrides, data}}
    axes: {AXIS: {VALUE: [overrides] or {SCALE: [overrides]}}}
    omit: [{AXIS: VALUE, ...}]   combinations that are not run
    also: [{where: {AXIS: VALUE, ...}, overrides}]   further overrides of some combinations
    updates_to: 0.6              optional: accuracy of the probe during training
    tabulate: [measures]         optional: measures in the tables and the plot; default: all
    compare: [{claim, measure, of, against, as, margin, paper}]
    paper: {source, rows}        the paper's own numbers

Among the overrides of a value, ``config=NAME`` selects another preset. A measure of probes, such as
``linear``, stands for that of each probe of the data.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mae_ast.core.io.first_line import first_line
from mae_ast.study.measure_names import kind_of
from mae_ast.trainer.command import config_dir

DEFAULT_SCALE = "demo"
FOLDER = "study"  # below the presets' folder
FORMS = ("ratio", "difference")
_KEYS = (
    *("title", "finding", "limits", "scale", "axes", "omit", "also"),
    *("updates_to", "tabulate", "compare", "paper"),
)
_PRESET = "config="


@dataclass(frozen=True)
class Cell:
    """A run of a study.

    Args:
        values: value of each axis, by the axis.
        seed: the run's ``common.seed``.
        config: name of the preset.
        overrides: overrides of the preset, ``KEY=VALUE``.
    """

    values: Mapping[str, str]
    seed: int
    config: str
    overrides: tuple[str, ...]

    @property
    def setting(self) -> str:
        """Name of its values, which cells of other seeds share."""
        return ", ".join(self.values.values())

    @property
    def name(self) -> str:
        """Name of its folder."""
        words = "-".join(self.values.values())
        return f"{re.sub(r'[^A-Za-z0-9.]+', '-', words).strip('-').lower()}-seed{self.seed}"


@dataclass(frozen=True)
class Comparison:
    """A difference between cells that a finding is about.

    Args:
        claim: what the paper says, as a sentence.
        measure: name of the measure, or of one that each probe has.
        of, against: values of axes that select the two groups of cells; the cells of both that
            agree in the seed and all other axes are compared.
        form: "ratio", ``against`` divided by ``of``, such as a speed-up; or "difference", ``of``
            minus ``against``.
        margin: the claim is that ``of`` is not worse than ``against`` by this much; ``None``: that
            it is better.
        paper: what the paper reports.
    """

    claim: str
    measure: str
    of: Mapping[str, str]
    against: Mapping[str, str]
    form: str
    margin: float | None
    paper: str


@dataclass(frozen=True)
class Study:
    """A study at one scale.

    Args:
        name: its name.
        title, finding, limits: texts, see the module.
        scale: name of the scale.
        data: name of the data, or a folder.
        axes: names of the values of each axis.
        cells: the runs: all seeds of the first combination, then of the next.
        updates_to: accuracy to reach by the probe during training; ``None``: not measured.
        tabulate: measures in the tables and the plot, as in ``Comparison``; empty: all.
        compare: the differences to look at.
        paper: the paper's own numbers: "source", and "rows", each with values of axes and numbers.
    """

    name: str
    title: str
    finding: str
    limits: str
    scale: str
    data: str
    axes: Mapping[str, tuple[str, ...]]
    cells: tuple[Cell, ...]
    updates_to: float | None
    tabulate: tuple[str, ...]
    compare: tuple[Comparison, ...]
    paper: Mapping[str, Any]


def study_names() -> list[str]:
    """Return the names of the studies of this package."""
    return sorted(path.stem for path in (config_dir() / FOLDER).glob("*.yaml"))


def read_study(
    study: str, seeds: int, scale: str = DEFAULT_SCALE, overrides: Sequence[str] = ()
) -> Study:
    """Read a study and list its cells.

    Args:
        study: name of a study of this package, or path of a YAML file.
        seeds: number of seeds, counted from 1.
        scale: name of a scale.
        overrides: overrides of all cells; they take precedence.

    Raises:
        ValueError: there is no such study or scale, or the file is invalid; the message names it.
    """
    path = _find(study)
    content = _read(path)
    scales = _part(path, content, "scale", dict)
    if scale not in scales:
        raise ValueError(f"scale={scale}: {path.name} has the scales {', '.join(scales)}")
    axes = {
        axis: tuple(map(str, values)) for axis, values in _part(path, content, "axes", dict).items()
    }
    cells = tuple(_cells(path, content, scale, seeds, overrides))
    return Study(
        name=path.stem,
        title=_part(path, content, "title", str),
        finding=_part(path, content, "finding", str),
        limits=content.get("limits", ""),
        scale=scale,
        data=str(scales[scale]["data"]) if "data" in scales[scale] else "",
        axes=axes,
        cells=cells,
        updates_to=content.get("updates_to"),
        tabulate=tuple(_measure(path, name) for name in content.get("tabulate", [])),
        compare=tuple(_comparison(path, each, axes) for each in content.get("compare", [])),
        paper=content.get("paper", {}),
    )


def _find(study: str) -> Path:
    if study.endswith((".yaml", ".yml")):
        if Path(study).is_file():
            return Path(study)
        raise ValueError(f"{study}: no such file")
    if study in study_names():
        return config_dir() / FOLDER / f"{study}.yaml"
    raise ValueError(f"{study}: no such study or file; studies are {', '.join(study_names())}")


def _read(path: Path) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: is not YAML ({first_line(error)})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: is not a study; a mapping with title, scale and axes is needed")
    if unknown := [key for key in content if key not in _KEYS]:
        raise ValueError(f"{path}: {unknown[0]}: no such key; keys are {', '.join(_KEYS)}")
    return content


def _part(path: Path, content: Mapping[str, Any], key: str, kind: type) -> Any:
    if not isinstance(content.get(key), kind) or not content[key]:
        what = "a text" if kind is str else "a mapping"
        raise ValueError(f"{path}: {key}: {what} is needed")
    return content[key]


def _cells(
    path: Path, content: Mapping[str, Any], scale: str, seeds: int, overrides: Sequence[str]
) -> Iterator[Cell]:
    axes: Mapping[str, Mapping[str, Any]] = content["axes"]
    base = content["scale"][scale]
    omitted = content.get("omit", [])
    names = set()
    for chosen in itertools.product(*axes.values()):
        values = dict(zip(axes, map(str, chosen), strict=True))
        if any(_agrees(values, each) for each in omitted):
            continue
        settings = [f"{_PRESET}{base['config']}", *base.get("overrides", [])]
        for axis, value in zip(axes, chosen, strict=True):
            given = axes[axis][value]
            settings += given.get(scale, []) if isinstance(given, dict) else given or []
        for each in content.get("also", []):
            if _agrees(values, each["where"]):
                settings += each["overrides"]
        for each in settings:
            if not isinstance(each, str) or not ("=" in each or each.startswith("~")):
                where = ", ".join(values.values())
                raise ValueError(f"{path}: overrides of {where}: {each!r} is not KEY=VALUE")
        config = [each for each in settings if each.startswith(_PRESET)][-1]
        own = [each for each in settings if not each.startswith(_PRESET)]
        for seed in range(1, seeds + 1):
            all_overrides = (*own, f"common.seed={seed}", *overrides)
            cell = Cell(values, seed, config.removeprefix(_PRESET), all_overrides)
            if cell.name in names:
                raise ValueError(f"{path}: two cells have the name {cell.name}; rename a value")
            names.add(cell.name)
            yield cell


def _agrees(values: Mapping[str, str], selection: Mapping[str, Any]) -> bool:
    """Return whether a cell has the selected values; a list selects any of its items."""
    return all(
        values.get(axis) in list(map(str, wanted if isinstance(wanted, list) else [wanted]))
        for axis, wanted in selection.items()
    )


def _measure(path: Path, name: str) -> str:
    try:
        kind_of(name)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return name


def _comparison(
    path: Path, given: Mapping[str, Any], axes: Mapping[str, Sequence[str]]
) -> Comparison:
    try:
        form = given["as"]
        found = Comparison(
            given["claim"],
            _measure(path, given["measure"]),
            {axis: str(value) for axis, value in given["of"].items()},
            {axis: str(value) for axis, value in given["against"].items()},
            form,
            None if given.get("margin") is None else float(given["margin"]),
            str(given.get("paper", "")),
        )
    except KeyError as error:
        raise ValueError(f"{path}: a comparison has no {error.args[0]}") from None
    if form not in FORMS:
        raise ValueError(f"{path}: as: {form}; must be one of {', '.join(FORMS)}")
    for axis, value in (*found.of.items(), *found.against.items()):
        if value not in axes.get(axis, ()):
            raise ValueError(f"{path}: a comparison names {axis}: {value}, which no cell has")
    return found
