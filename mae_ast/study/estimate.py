"""Estimate the time of a study: counted operations, at the rate of a short trial of one cell."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from mae_ast.bench.plan import compose_settings, make_plan
from mae_ast.bench.training import seconds_per_update
from mae_ast.core.io.read_ahead import Progress
from mae_ast.study.data import StudyData
from mae_ast.study.definition import Cell
from mae_ast.trainer.child_training import training_environment
from mae_ast.trainer.command import train_command
from mae_ast.trainer.metrics_log import read_metrics

TRIAL_UPDATES, WARM_UP = 24, 8
OVERHEAD_S = 60.0  # of a cell: start of the process, validation, measures


def estimate(
    cells: Mapping[str, Cell], data: StudyData, progress: Progress | None = None
) -> dict[str, float]:
    """Return the seconds that cells take.

    Args:
        cells: one cell for each setting, by the setting.
        data: data of the study.
        progress: wrapper of the iteration over the cells.

    Raises:
        ValueError: the settings of a cell are invalid, or the trial failed.
    """
    operations: dict[str, float] = {}  # of an update
    updates: dict[str, int] = {}
    for setting in cells if progress is None else progress(cells, len(cells)):
        cell = cells[setting]
        settings = compose_settings(data.folder, cell.config, list(cell.overrides))
        plan = make_plan(settings, [data.folder / "train.tsv"], 1)
        operations[setting] = plan.flops * plan.clips_per_update
        updates[setting] = plan.updates
    first = next(iter(cells))
    rate = operations[first] / _trial(cells[first], data)
    return {
        setting: OVERHEAD_S + updates[setting] * operations[setting] / rate for setting in cells
    }


def _trial(cell: Cell, data: StudyData) -> float:
    """Train a cell for a few updates; return the seconds per update."""
    with tempfile.TemporaryDirectory() as folder:
        settings = (
            *(f"optimization.max_update={TRIAL_UPDATES}", "common.log_interval=1"),
            *("checkpoint.no_save=true", "dataset.disable_validation=true"),
            *("common.tensorboard_logdir=null", "task.probe_interval_updates=0"),
        )
        command = train_command(
            data.folder, cell.config, Path(folder), [*cell.overrides, *settings]
        )
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=training_environment()
        )
        if done.returncode:
            last = (done.stdout + done.stderr).strip().rpartition("\n")[2]
            raise ValueError(f"the trial of {cell.name} failed: {last}")
        return seconds_per_update(read_metrics(Path(folder)), WARM_UP)
