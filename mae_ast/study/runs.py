"""Train and measure the cells of a study, each in a folder of its own; finished ones are kept."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from threadpoolctl import threadpool_limits

from mae_ast.console import progress_bar
from mae_ast.core.checkpoints.reader import RUN_FILE, read_state
from mae_ast.core.io.first_line import first_line
from mae_ast.core.io.settings_note import file_digest, write_note
from mae_ast.study.data import StudyData
from mae_ast.study.definition import Cell, Study
from mae_ast.study.measures import measure_baselines, measure_run
from mae_ast.trainer import sweep
from mae_ast.trainer.child_training import Trainings, training_environment, update_of
from mae_ast.trainer.command import train_command
from mae_ast.trainer.run_record import started_by
from mae_ast.trainer.several_runs import is_trained, was_interrupted

LOG_FILE = "train.log"  # in a run's folder: what the training process printed
MEASURES_FILE = "measures.json"  # in a run's folder
BASELINES = "baselines"  # subfolder of the study


@dataclass(frozen=True)
class Outcome:
    """Result of a cell.

    Args:
        cell: the cell.
        measures: its measures (:data:`mae_ast.study.measure_names.MEASURES`); ``None``: it failed.
        error: why it failed; empty if it did not.
    """

    cell: Cell
    measures: dict[str, float] | None
    error: str = ""


class Runner:
    """Train and measure cells.

    Args:
        study: the study.
        data: its data.
        out: its folder.
        trainings: forwards signals to the training processes.
        lock: file descriptor that stays open while a process trains.
        parallel: number of cells that are trained at a time.
    """

    def __init__(
        self,
        study: Study,
        data: StudyData,
        out: Path,
        trainings: Trainings,
        lock: int,
        parallel: int = 1,
    ) -> None:
        self._study, self._data, self._out = study, data, out
        self._trainings, self._lock, self._parallel = trainings, lock, parallel
        self._measuring = Lock()  # the limit of threads holds for the whole process

    def run(self) -> list[Outcome]:
        """Run all cells; one that fails does not stop the others.

        Raises:
            Interrupted: a signal was received, and the trainings have saved.
        """
        cells = self._study.cells
        found: dict[str, Outcome] = {}
        with progress_bar(self._study.title, "cell", len(cells)) as bar:

            def show(cell: Cell, update: object) -> None:
                bar.set_postfix({"now": cell.name, "update": update})

            if self._parallel == 1:
                for cell in cells:
                    found[cell.name] = self._run_one(cell, show)
                    bar.update()
            else:
                with ThreadPoolExecutor(self._parallel) as pool:
                    futures = [pool.submit(self._run_one, cell, show) for cell in cells]
                    for future in as_completed(futures):
                        found[future.result().cell.name] = future.result()
                        bar.update()
        return [found[cell.name] for cell in cells]

    def _run_one(self, cell: Cell, show: Callable[[Cell, object], None]) -> Outcome:
        run = self._out / cell.name
        try:
            show(cell, "...")
            self._train(cell, run, lambda update: show(cell, update))
            # Threads that compete with a training for a core slow both down.
            threads = (os.cpu_count() or 1) // self._parallel or 1
            with self._measuring, threadpool_limits(threads):
                show(cell, "measuring")
                return Outcome(cell, self._measure(run))
        except (ValueError, OSError) as error:
            return Outcome(cell, None, first_line(error))

    def _train(self, cell: Cell, run: Path, show: Callable[[object], None]) -> None:
        """Train a cell, unless it has reached its end.

        Raises:
            ValueError: training failed; the message names its log.
        """
        if is_trained(run):
            return
        run.mkdir(parents=True, exist_ok=True)
        path = run / LOG_FILE
        overrides = self._overrides(cell)
        # Trains the same run alone.
        command = ["mae-ast", "pretrain", str(self._data.folder), "--config", cell.config]
        command += ["--out", str(run)]
        with path.open("a", buffering=1, encoding="utf-8") as log:

            def record(line: str) -> None:
                log.write(line)
                if update := update_of(line):
                    show(update["num_updates"])

            try:
                self._trainings.run(
                    train_command(self._data.folder, cell.config, run, overrides),
                    [self._lock],
                    training_environment(self._parallel) | started_by([*command, *overrides]),
                    record,
                )
            except ValueError as error:
                raise ValueError(f"training failed, see {path}") from error
        if not is_trained(run) and was_interrupted(run):
            raise ValueError(f"{run}: ended before its last update; the same command resumes")

    def _overrides(self, cell: Cell) -> list[str]:
        found = list(cell.overrides)
        if self._study.updates_to is not None and (labelled := self._data.labelled):
            found.insert(0, f"task.probe_data={labelled}")
        return [*found, "--multirun"] if has_launcher(found) else found

    def _measure(self, run: Path) -> dict[str, float]:
        state = read_state(run / RUN_FILE)
        model = json.dumps(state["cfg"]["model"], sort_keys=True, default=str)
        key = hashlib.sha256(model.encode()).hexdigest()[:12]
        probes = [[p.name, str(p.train), str(p.test)] for p in self._data.probes]
        inputs = {
            "checkpoint": file_digest(run / RUN_FILE),
            "probes": probes,
            "updates_to": self._study.updates_to,
        }
        own = _kept(
            run / MEASURES_FILE,
            inputs,
            lambda: measure_run(run, self._data, self._study.updates_to),
        )
        baselines = _kept(
            self._out / BASELINES / f"{key}.json",
            {"probes": probes},
            lambda: measure_baselines(run, self._data),
        )
        return own | baselines


def has_launcher(overrides: Sequence[str]) -> bool:
    """Return whether a launcher of hydra starts the cells, such as that of a cluster."""
    _, settings = sweep.split_options(overrides)
    return any(each.lstrip("+").startswith("hydra/launcher=") for each in settings)


def _kept(
    path: Path, inputs: dict[str, Any], compute: Callable[[], dict[str, float]]
) -> dict[str, float]:
    """Return the measures of a file, or compute and write them if their inputs have changed."""
    if path.is_file():
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept.get("inputs") == inputs:
            measures: dict[str, float] = kept["measures"]
            return measures
    found = compute()
    write_note(path, {"inputs": inputs, "measures": found})
    return found
