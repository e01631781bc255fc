"""Train and measure the cells of a study, each in a folder of its own; finished ones are kept."""

from __future__ import annotations

import hashlib
import json
import os
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from threadpoolctl import threadpool_limits

from mae_ast.console import is_for_user, progress_bar
from mae_ast.core.checkpoints.reader import RUN_FILE, read_state
from mae_ast.core.checkpoints.run_files import list_checkpoints
from mae_ast.core.io.first_line import first_line
from mae_ast.core.io.settings_note import file_digest, write_note
from mae_ast.study.data import StudyData
from mae_ast.study.definition import Cell, Study
from mae_ast.study.measures import MEASURES_VERSION, measure_baselines, measure_run, updates_to
from mae_ast.trainer import sweep
from mae_ast.trainer.child_training import Trainings, training_environment, update_of
from mae_ast.trainer.command import NOTE, run_identity, train_command
from mae_ast.trainer.resume_guard import assert_same_run
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
        measures: its measures (:data:`mae_ast.study.measure_names.MEASURES`), with baselines if
            it is of the first seed; ``None``: it failed.
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
        self._is_stopping = False
        self._content = data.content()

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
                    try:
                        for future in as_completed(futures):
                            found[future.result().cell.name] = future.result()
                            bar.update()
                    except BaseException:
                        self._is_stopping = True
                        pool.shutdown(cancel_futures=True)
                        raise
        return [found[cell.name] for cell in cells]

    def _run_one(self, cell: Cell, show: Callable[[Cell, object], None]) -> Outcome:
        run = self._out / cell.name
        try:
            show(cell, "...")
            self._train(cell, run, lambda update: show(cell, update))
            # Threads that compete with a training for a core slow both down.
            threads = (os.cpu_count() or 1) // self._parallel or 1
            with self._measuring, threadpool_limits(threads):
                if self._is_stopping:
                    return Outcome(cell, None, "not measured")
                show(cell, "measuring")
                return Outcome(cell, self._measure(cell, run))
        except Exception as error:
            if is_for_user(error):
                return Outcome(cell, None, first_line(error))
            with (run / LOG_FILE).open("a", encoding="utf-8") as log:
                log.writelines(traceback.format_exception(error))
            return Outcome(cell, None, f"{first_line(error)}; see {run / LOG_FILE}")

    def _train(self, cell: Cell, run: Path, show: Callable[[object], None]) -> None:
        """Train a cell, unless it has reached its end.

        Raises:
            ValueError: training failed; the message names its log. Or the run was started with
                other settings.
        """
        note = run / NOTE
        identity = {
            **run_identity(self._data.folder, cell.config),
            "overrides": list(cell.overrides),
        }
        if note.is_file() and list_checkpoints(run / RUN_FILE.parent):
            assert_same_run(note, identity)
        else:
            write_note(note, identity)
        if is_trained(run):
            return
        path = run / LOG_FILE
        overrides = self._overrides(cell)
        command = ["mae-ast", "pretrain", str(self._data.folder), "--config", cell.config]
        command += ["--out", str(run), *overrides]  # it trains the same run alone
        with path.open("a", buffering=1, encoding="utf-8") as log:

            def record(line: str) -> None:
                log.write(line)
                if update := update_of(line):
                    show(update["num_updates"])

            try:
                self._trainings.run(
                    train_command(self._data.folder, cell.config, run, overrides),
                    [self._lock],
                    training_environment(self._parallel) | started_by(command),
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

    def _measure(self, cell: Cell, run: Path) -> dict[str, float]:
        state = read_state(run / RUN_FILE)
        common = {"version": MEASURES_VERSION, "content": self._content}
        found = _cached(
            run / MEASURES_FILE,
            {**common, "checkpoint": file_digest(run / RUN_FILE)},
            lambda: measure_run(run, self._data),
        )
        if self._study.updates_to is not None:
            found |= updates_to(run, self._study.updates_to)
        if cell.seed == self._study.cells[0].seed:
            model = json.dumps(state["cfg"]["model"], sort_keys=True, default=str)
            key = hashlib.sha256(model.encode()).hexdigest()[:12]
            found |= _cached(
                self._out / BASELINES / f"{key}.json",
                common,
                lambda: measure_baselines(run, self._data),
            )
        return found


def by_setting(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    """Return the cells of each setting."""
    found: dict[str, list[Outcome]] = {}
    for each in outcomes:
        found.setdefault(each.cell.setting, []).append(each)
    return found


def has_launcher(overrides: Sequence[str]) -> bool:
    """Return whether a launcher of hydra starts the cells, such as that of a cluster."""
    _, settings = sweep.split_options(overrides)
    return any(each.lstrip("+").startswith("hydra/launcher=") for each in settings)


def _cached(
    path: Path, inputs: dict[str, Any], compute: Callable[[], dict[str, float]]
) -> dict[str, float]:
    """Return the measures in a file, or compute and write them if their inputs have changed."""
    with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):  # damaged or absent
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["inputs"] == inputs:
            return {name: float(value) for name, value in found["measures"].items()}
    measures = compute()
    write_note(path, {"inputs": inputs, "measures": measures})
    return measures
