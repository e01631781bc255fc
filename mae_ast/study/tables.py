"""Tables of a study: its cells, mean and std over seeds, and its comparisons."""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scipy.stats import t as student

from mae_ast.core.io.atomic import atomic_write
from mae_ast.core.io.plural import plural
from mae_ast.study.definition import Cell, Comparison, Study
from mae_ast.study.measure_names import heading, kind_of, measure_of
from mae_ast.study.runs import Outcome, by_setting

Origin = Mapping[str, str]  # of the measures: command, hardware, commit, versions, dates

SHOWN, NOT_SHOWN, REVERSED = "shown", "not shown", "reversed"
CONFIDENCE = 0.95  # of a verdict


@dataclass(frozen=True)
class Table:
    """A table of texts.

    Args:
        kind: "measures", "comparisons", "paper" or "origin".
        title: its title; may be empty.
        columns: headings of the columns.
        rows: a text for each column.
    """

    kind: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> list[str]:
        """Return its lines in Markdown, title included."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        title = [f"## {self.title}", ""] if self.title else []
        rows = ([cell.replace("|", "\\|") for cell in cells] for cells in lines)
        return [*title, *(f"| {' | '.join(cells)} |" for cells in rows), ""]


@dataclass(frozen=True)
class Verdict:
    """A comparison as measured.

    Args:
        comparison: the comparison.
        measure: the measure that is compared.
        values: ratio or difference of each pair of cells.
        verdict: whether the measured difference has the direction of the paper's.
    """

    comparison: Comparison
    measure: str
    values: tuple[float, ...]
    verdict: str


def write_csv(path: Path, study: Study, outcomes: Sequence[Outcome]) -> None:
    """Write all measures of all cells, one row per cell; a failed cell has empty measures."""
    names = measures_of(outcomes)
    with atomic_write(path) as part, part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow((*study.axes, "seed", "cell", *names))
        for each in outcomes:
            values = [each.measures.get(name, "") if each.measures else "" for name in names]
            writer.writerow((*each.cell.values.values(), each.cell.seed, each.cell.name, *values))


def measures_of(outcomes: Sequence[Outcome]) -> list[str]:
    """Return the names of all measures that a cell has, in order."""
    return list(dict.fromkeys(name for each in outcomes for name in each.measures or {}))


def tabulated(study: Study, outcomes: Sequence[Outcome]) -> list[str]:
    """Return the names of the measures that the tables and the plot of a study show."""
    found = measures_of(outcomes)
    wanted = [name for each in study.tabulate for name in _measures_like(each, found)]
    return list(dict.fromkeys(wanted)) if study.tabulate else found


def _measures_like(wanted: str, names: Sequence[str]) -> list[str]:
    """Return a measure, or that of each probe."""
    return [name for name in names if wanted in (name, kind_of(name))]


def tables(
    study: Study, outcomes: Sequence[Outcome], verdicts: Sequence[Verdict], origin: Origin
) -> list[Table]:
    """Return the measures of each setting, the comparisons, the paper's numbers, and the origin."""
    names = tabulated(study, outcomes)
    columns = [*study.axes, "seeds", *map(heading, names)]
    found = [Table("measures", "", columns, _means(study, outcomes, names))]
    if verdicts:
        columns = ["the paper", "measured here", "in the paper", "at this scale"]
        found.append(
            Table("comparisons", "The finding", columns, [_verdict_row(each) for each in verdicts])
        )
    if study.paper is not None:
        rows = study.paper.rows
        columns = list(dict.fromkeys(key for row in rows for key in row))
        cells = [[str(row.get(key, "")) for key in columns] for row in rows]
        found.append(Table("paper", f"The paper's numbers ({study.paper.source})", columns, cells))
    found.append(Table("origin", "Measured", ["", ""], list(origin.items())))
    return found


def markdown(
    study: Study, outcomes: Sequence[Outcome], verdicts: Sequence[Verdict], origin: Origin
) -> str:
    """Return the texts and tables of a study as Markdown."""
    seeds = len({each.cell.seed for each in outcomes})
    lines = [f"# {study.title}", "", study.finding, ""]
    lines += [f"Scale `{study.scale}`, {plural(seeds, 'seed')}: mean ± std.", ""]
    for table in tables(study, outcomes, verdicts, origin):
        lines += table.markdown()
    if study.limits:
        lines += ["## Limits", "", study.limits, ""]
    if failed := [each for each in outcomes if each.error]:
        lines += ["## Failed", "", *(f"- {each.cell.name}: {each.error}" for each in failed), ""]
    return "\n".join(lines)


def compare(study: Study, outcomes: Sequence[Outcome]) -> list[Verdict]:
    """Compare cells as the study says; pairs agree in the seed and in all other axes.

    A claim is shown, or reversed, if the mean over the pairs differs from no difference (that they
    are not worse: from the margin) with a confidence of 95 % (one-sided t-test).
    """
    verdicts = []
    names = measures_of(outcomes)
    for each in study.compare:
        for name in _measures_like(each.measure, names) or [each.measure]:
            values, is_complete = _pairs(each, name, outcomes)
            verdict = _judge(each, name, values) if is_complete else "incomplete"
            verdicts.append(Verdict(each, name, values, verdict))
    return verdicts


def _pairs(
    comparison: Comparison, name: str, outcomes: Sequence[Outcome]
) -> tuple[tuple[float, ...], bool]:
    """Return the ratio or difference of each pair, and whether all measured cells have one."""
    of, against = (
        {
            _rest_of(each.cell, wanted): each.measures.get(name, math.nan)
            for each in outcomes
            if each.measures is not None and wanted.items() <= each.cell.values.items()
        }
        for wanted in (comparison.of, comparison.against)
    )
    pairs = [(of[key], against[key]) for key in of if key in against]
    values = [
        _value_of(comparison, name, *pair) for pair in pairs if not any(map(math.isnan, pair))
    ]
    is_complete = len(values) in (0, len(pairs))
    return tuple(value for value in values if value is not None), is_complete


def _rest_of(cell: Cell, selection: Mapping[str, str]) -> object:
    return cell.seed, tuple(item for item in cell.values.items() if item[0] not in selection)


def _value_of(comparison: Comparison, name: str, of: float, against: float) -> float | None:
    """Return how much, or how many times, one value is better; ``None``: it cannot be divided."""
    if comparison.form == "difference":
        return of - against
    if measure_of(name).lower_is_better:
        of, against = against, of
    return of / against if against else None


def _judge(comparison: Comparison, name: str, values: Sequence[float]) -> str:
    if not values:
        return "not measured"
    if len(values) < 2:
        return "one pair only"
    is_ratio = comparison.form == "ratio"
    sign = -1 if measure_of(name).lower_is_better and not is_ratio else 1
    mean = sign * (statistics.mean(values) - is_ratio) + (comparison.margin or 0.0)
    count = len(values)
    error = float(student.ppf(CONFIDENCE, count - 1)) * statistics.stdev(values) / count**0.5
    if abs(mean) <= error:
        return NOT_SHOWN
    return SHOWN if mean > 0 else REVERSED


def _verdict_row(each: Verdict) -> list[str]:
    measure = measure_of(each.measure)
    title = heading(each.measure).partition(" (")[0]
    if not each.values:
        return [each.comparison.claim, title, each.comparison.paper, each.verdict]
    is_ratio = each.comparison.form == "ratio"
    factor, digits = (1.0, 2) if is_ratio else (measure.factor, measure.digits)
    text = _mean_text(each.values, factor, digits)
    unit = " times" if is_ratio else f" {'points' if measure.unit == '%' else measure.unit}"
    sign = "+" if not is_ratio and statistics.mean(each.values) > 0 else ""
    count = plural(len(each.values), "pair")
    measured = f"{title}: {sign}{text}{unit.rstrip()} ({count})"
    return [each.comparison.claim, measured, each.comparison.paper, each.verdict]


def _means(study: Study, outcomes: Sequence[Outcome], names: Sequence[str]) -> list[list[str]]:
    """Return a row for each setting: its values, number of seeds, and measures."""
    rows = []
    for own in by_setting(outcomes).values():
        done = [each.measures for each in own if each.measures is not None]
        cells = [_cell_text(name, [m.get(name) for m in done]) for name in names]
        rows.append([*own[0].cell.values.values(), str(len(done)), *cells])
    return rows


def _cell_text(name: str, values: Sequence[float | None]) -> str:
    """Return mean and std of the seeds, and how many of them have a value if not all do."""
    measure = measure_of(name)
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    text = _mean_text(known, measure.factor, measure.digits)
    if measure.is_baseline or len(known) == len(values):
        return text
    return f"{text} ({len(known)} of {len(values)})"


def _mean_text(values: Sequence[float], factor: float, digits: int) -> str:
    mean = f"{factor * statistics.mean(values):,.{digits}f}"
    if len(values) < 2:
        return mean
    return f"{mean} ± {factor * statistics.stdev(values):.{digits}f}"
