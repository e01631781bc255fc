"""Summary of a study as JSON, ``study.json``, which ``mae-ast report`` shows."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mae_ast.core.io.settings_note import read_note, write_note
from mae_ast.study.definition import Study
from mae_ast.study.measure_names import heading, measure_of
from mae_ast.study.runs import Outcome, by_setting
from mae_ast.study.tables import Origin, Verdict, tables, tabulated
from mae_ast.trainer.run_record import first_start

SUMMARY_FILE = "study.json"  # in the folder of a study
_KEYS = (
    *("title", "finding", "limits", "scale", "seeds", "settings", "tables", "measures", "runs"),
    "failed",
)


def write_summary(
    path: Path,
    study: Study,
    outcomes: Sequence[Outcome],
    verdicts: Sequence[Verdict],
    origin: Origin,
) -> None:
    """Write the texts, tables, measures and names of the cells of a study.

    The file has "title", "finding", "limits", "scale", "seeds"; "settings", the names of the
    combinations; "tables", each with "kind", "title", "columns" and "rows"; "measures", each with
    "title" and "values", for each setting those of its seeds; "runs", for each setting the names of
    its trained cells; and "failed", pairs of a cell and its error.
    """
    settings = by_setting(outcomes)
    measures = [
        {
            "title": heading(name),
            "values": [
                [
                    measure_of(name).factor * each.measures[name]
                    for each in own
                    if each.measures and name in each.measures
                ]
                for own in settings.values()
            ],
        }
        for name in tabulated(study, outcomes)
    ]
    content = {
        "title": study.title,
        "finding": study.finding,
        "limits": study.limits,
        "scale": study.scale,
        "seeds": len({each.cell.seed for each in outcomes}),
        "settings": list(settings),
        "tables": [dataclasses.asdict(each) for each in tables(study, outcomes, verdicts, origin)],
        "measures": measures,
        "runs": [[each.cell.name for each in own if not each.error] for own in settings.values()],
        "failed": [[each.cell.name, each.error] for each in outcomes if each.error],
    }
    write_note(path, content)


def origin_of(folder: Path, outcomes: Sequence[Outcome], command: Sequence[str]) -> Origin:
    """Return command, hardware, commit and dates of a study, as its runs record them.

    Args:
        folder: folder of the study.
        outcomes: its cells.
        command: command line of the study.
    """
    starts = [first_start(folder / each.cell.name) for each in outcomes]

    def values(of: Callable[[Mapping[str, Any]], Any]) -> str:
        found = dict.fromkeys(str(of(start)) for start in starts if start and of(start))
        return ", ".join(found) or "not recorded"

    dates = sorted(str(start["timestamp"])[:10] for start in starts if start.get("timestamp"))
    return {
        "command": shlex.join(command),
        "hardware": values(lambda start: start.get("hardware")),
        "commit": values(lambda start: start.get("commit")),
        "mae-ast": values(lambda start: start.get("versions", {}).get("mae-ast")),
        "date": " to ".join(dict.fromkeys((dates[0], dates[-1]))) if dates else "not recorded",
    }


def read_summary(folder: Path) -> dict[str, Any] | None:
    """Return the summary of a study; ``None`` if the folder has none.

    Raises:
        ValueError: the file is damaged, or is no summary.
    """
    path = folder / SUMMARY_FILE
    if not path.is_file():
        return None
    found = read_note(path, "the command of the study writes it again")
    if not all(key in found for key in _KEYS):
        raise ValueError(f"{path}: is no summary of a study")
    return found
