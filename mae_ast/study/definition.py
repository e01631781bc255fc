"""Definition of a study: its cells, and the differences to look at.

A cell is one run: a value of each axis, and a seed. :mod:`mae_ast.study.file` describes the keys of
a study's file. Among overrides, ``config=NAME`` selects another preset.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mae_ast.study.file import Claim, Paper, StudyFile, read_file
from mae_ast.study.measure_names import kind_of
from mae_ast.trainer.command import config_dir

DEFAULT_SCALE = "demo"
FOLDER = "study"  # below the presets' folder
FORMS = ("ratio", "difference")
MAX_NAME = 200  # characters of a cell's folder
_PRESET, _SEED = "config=", "common.seed"

Axes = dict[str, dict[str, list[str]]]  # overrides by axis and value


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
        paper: the paper's own numbers; ``None``: there are none.
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
    paper: Paper | None

    def on(self, overrides: Sequence[str]) -> Study:
        """Return the study with overrides of all cells that its own ones take precedence over."""
        cells = [replace(cell, overrides=(*overrides, *cell.overrides)) for cell in self.cells]
        return replace(self, cells=tuple(cells))


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
        ValueError: there is no such study or scale, an override is invalid, or the file is; the
            message names it.
    """
    path = _find(study)
    content = read_file(path)
    if scale not in content.scale:
        raise ValueError(f"scale={scale}: {path.name} has the scales {', '.join(content.scale)}")
    _check_overrides(overrides)
    if wrong := [axis for axis, values in content.axes.items() if not isinstance(values, dict)]:
        raise ValueError(f"{path}: axes.{wrong[0]}: a mapping of values is needed")
    every_value = {axis: tuple(values) for axis, values in content.axes.items()}
    axes = {axis: _values_at(path, content, axis, scale) for axis in every_value}
    for key, selections in (("omit", content.omit), ("also", [a.where for a in content.also])):
        for selection in selections:
            _check_selection(path, key, selection, every_value)
    cells = tuple(_cells(path, content, axes, scale, seeds, overrides))
    if not cells:
        raise ValueError(f"{path}: has no cells at scale={scale}")
    return Study(
        name=path.stem,
        title=content.title,
        finding=content.finding,
        limits=content.limits,
        scale=scale,
        data=content.scale[scale].data,
        axes={axis: tuple(values) for axis, values in axes.items()},
        cells=cells,
        updates_to=content.updates_to,
        tabulate=tuple(_measure(path, name) for name in content.tabulate),
        compare=tuple(_comparison(path, each, every_value) for each in content.compare),
        paper=content.paper,
    )


def _find(study: str) -> Path:
    if study.endswith((".yaml", ".yml")):
        if Path(study).is_file():
            return Path(study)
        raise ValueError(f"{study}: no such file")
    if study in study_names():
        return config_dir() / FOLDER / f"{study}.yaml"
    raise ValueError(f"{study}: no such study or file; studies are {', '.join(study_names())}")


def _values_at(path: Path, content: StudyFile, axis: str, scale: str) -> dict[str, list[str]]:
    """Return the overrides of the values of an axis, without those that omit the scale."""
    found = {}
    for value, given in content.axes[axis].items():
        where = f"{path}: axes.{axis}.{value}"
        if isinstance(given, dict):
            if unknown := [each for each in given if each not in content.scale]:
                raise ValueError(f"{where}.{unknown[0]}: no such scale")
            if scale not in given:
                continue
            given = given[scale]
        if not isinstance(given, list) or not all(isinstance(each, str) for each in given):
            raise ValueError(f"{where}: a list of KEY=VALUE is needed")
        found[value] = given
    return found


def _cells(
    path: Path,
    content: StudyFile,
    axes: Axes,
    scale: str,
    seeds: int,
    overrides: Sequence[str],
) -> Iterator[Cell]:
    base = content.scale[scale]
    known: dict[object, str] = {}  # cells by their settings
    names = set()
    for chosen in itertools.product(*axes.values()):
        values = dict(zip(axes, chosen, strict=True))
        if any(_agrees(values, each) for each in content.omit):
            continue
        settings = [f"{_PRESET}{base.config}", *base.overrides]
        settings += [each for axis, value in values.items() for each in axes[axis][value]]
        settings += [
            each for also in content.also if _agrees(values, also.where) for each in also.overrides
        ]
        try:
            _check_overrides(settings)
        except ValueError as error:
            raise ValueError(f"{path}: {', '.join(values.values())}: {error}") from None
        settings += overrides
        config = [each for each in settings if each.startswith(_PRESET)][-1]
        own = tuple(each for each in settings if not each.startswith(_PRESET))
        for seed in range(1, seeds + 1):
            all_overrides = (*own, f"{_SEED}={seed}")
            cell = Cell(values, seed, config.removeprefix(_PRESET), all_overrides)
            if cell.name in names:
                raise ValueError(f"{path}: two cells have the name {cell.name}; rename a value")
            if len(cell.name) > MAX_NAME:
                raise ValueError(f"{path}: {cell.name}: longer than {MAX_NAME} characters")
            other = known.setdefault((cell.config, cell.overrides), cell.name)
            if other != cell.name:
                raise ValueError(f"{path}: {other} and {cell.name} have the same settings")
            names.add(cell.name)
            yield cell


def _check_overrides(overrides: Sequence[str]) -> None:
    for each in overrides:
        if not ("=" in each or each.startswith("~")):
            raise ValueError(f"{each!r} is not KEY=VALUE")
        if each.lstrip("+~").partition("=")[0] == _SEED:
            raise ValueError(f"{each}: the seeds are set by --seeds")


def _check_selection(
    path: Path, key: str, selection: Mapping[str, Any], axes: Mapping[str, Sequence[str]]
) -> None:
    """Check that a selection names axes and values that exist.

    Raises:
        ValueError: it does not, or it is empty.
    """
    if not selection:
        raise ValueError(f"{path}: {key}: values of axes are needed")
    for axis, wanted in selection.items():
        for value in wanted if isinstance(wanted, list) else [wanted]:
            if str(value) not in axes.get(axis, ()):
                raise ValueError(f"{path}: {key} names {axis}: {value}, which no cell has")


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


def _comparison(path: Path, given: Claim, axes: Mapping[str, Sequence[str]]) -> Comparison:
    of, against = (
        {axis: str(value) for axis, value in each.items()} for each in (given.of, given.against)
    )
    for selection in (of, against):
        _check_selection(path, "compare", selection, axes)
    if of.keys() != against.keys() or of == against:
        raise ValueError(
            f"{path}: {given.claim}: of and against need other values of the same axes"
        )
    if given.form not in FORMS:
        raise ValueError(f"{path}: form: {given.form}; must be one of {', '.join(FORMS)}")
    return Comparison(
        given.claim,
        _measure(path, given.measure),
        of,
        against,
        given.form,
        given.margin,
        given.paper,
    )
