"""Contents of a page: what its sections show, as plain values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from mae_ast import __version__
from mae_ast.core.io.plural import plural
from mae_ast.core.io.read_ahead import Progress
from mae_ast.report import curves, tables
from mae_ast.report.collect import Run
from mae_ast.report.embeddings import embeddings
from mae_ast.report.reconstructions import Excerpts, reconstructions
from mae_ast.report.settings import settings_tables
from mae_ast.report.sounds import Sounds
from mae_ast.report.steps import step_times

MAX_WITH_SOUND = 6  # runs with reconstructions, embeddings and measured steps
MAX_NAMED = 4  # runs in the title

Contents = dict[str, Any]


@dataclass(frozen=True)
class Choices:
    """Choices for a page.

    Args:
        title: title of the page; empty: the names of the runs, or their number.
        excerpts: clips to reconstruct.
        labelled: folder of labelled clips to embed; ``None``: the run's own.
        measured: measure the parts of a training step.
        device: device of the models.
    """

    title: str
    excerpts: Excerpts
    labelled: Path | None
    measured: bool
    device: str


def contents(
    runs: Sequence[Run],
    choices: Choices,
    progress: Progress | None = None,
    studies: Sequence[Contents] = (),
) -> Contents:
    """Collect what the page shows; the values can be written as JSON.

    Args:
        runs: runs of any number.
        choices: choices for the page.
        progress: wrapper of the iteration over the parts that take long.
        studies: summaries of studies (:mod:`mae_ast.study.summary`).
    """
    sounds = Sounds()
    some = runs[:MAX_WITH_SOUND]
    parts: dict[str, Callable[[], Any]] = {
        "clips": lambda: reconstructions(some, choices.excerpts, choices.device, sounds),
        "embeddings": lambda: embeddings(some, choices.labelled, choices.device, sounds),
        "steps": lambda: step_times(runs, choices.device, len(some) if choices.measured else 0),
    }
    names = parts if progress is None else progress(parts, len(parts))
    values = {name: parts[name]() for name in names}
    settings = settings_tables(runs)
    notes = [[run.name, note] for run in runs for note in run.notes]
    if len(runs) > len(some):
        first = f"only of the first {len(some)} of {plural(len(runs), 'run')}"
        notes.append(["", f"reconstructions, embeddings and parts of a step: {first}"])
    if not choices.measured:
        notes.append(["", "parts of a step: not measured, because of --no-timing"])
    return {
        "title": choices.title or _title(runs, studies),
        "about": _about(len(runs)),
        "studies": list(studies),
        "runs": [run.name for run in runs],
        "facts": tables.facts(runs),
        "settings": settings,
        "panels": curves.panels(runs),
        "max_points": curves.max_points(len(runs)),
        **values,
        "validation": tables.validation_table(runs),
        "probe": tables.probe_table(runs),
        "evaluation": tables.evaluation_table(runs),
        "notes": notes,
        "sounds": sounds.uris,
    }


def _title(runs: Sequence[Run], studies: Sequence[Contents]) -> str:
    if studies:
        return ", ".join(study["title"] for study in studies)
    if len(runs) > MAX_NAMED:
        return plural(len(runs), "run")
    return ", ".join(run.name for run in runs)


def _about(num_runs: int) -> str:
    made = datetime.now(timezone.utc)
    return f"{plural(num_runs, 'run')}; made by mae-ast {__version__} on {made:%Y-%m-%d %H:%M} UTC"
