"""``mae-ast study NAME KEY=VALUE...``: train, measure and compare the cells of a study."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mae_ast.core.io.plural import plural

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mae_ast.study.data import StudyData
    from mae_ast.study.definition import Study
    from mae_ast.study.runs import Outcome

OWN_KEYS = ("scale", "data")
CSV_FILE, TABLES_FILE, PLOT_FILE = "cells.csv", "study.md", "study.png"


def study(
    definition: Annotated[
        str, typer.Argument(metavar="NAME|FILE", help="Name of a study, or path of a YAML file.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE...",
            help="scale=NAME (default: demo), data=NAME or data=FOLDER (default: that of the "
            "scale); other keys override the settings of all cells.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the cells and the tables; default: outputs/study/NAME."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds of each setting.")] = 3,
    parallel: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of cells to train at a time; default: 1, or all if hydra/launcher=NAME "
            "submits them.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the cells and the estimated time only.")
    ] = False,
) -> None:
    """Train a run for each setting and seed of a study, measure all alike, and compare.

    Each cell is an ordinary run, OUT/CELL. The same command again keeps finished cells and resumes
    the others. A cell that fails is named, and the others continue. With
    hydra/launcher=submitit_slurm the cells are submitted to a cluster.

    The measures of all cells are written to OUT/cells.csv, the tables to OUT/study.md, a plot to
    OUT/study.png.

    The command saves and exits on Ctrl-C, SIGTERM or SIGUSR1.
    """
    from mae_ast.console import TRAINING, require
    from mae_ast.study.data import find_data
    from mae_ast.study.definition import DEFAULT_SCALE, read_study
    from mae_ast.study.measures import MAX_CLIPS
    from mae_ast.study.runs import has_launcher
    from mae_ast.trainer import sweep

    require(*TRAINING, "matplotlib")
    own = {key: value for key, _, value in (each.partition("=") for each in overrides or [])}
    given = [each for each in overrides or [] if each.partition("=")[0] not in OWN_KEYS]
    sweep.check_launcher(given)
    found = read_study(definition, seeds, own.get("scale", DEFAULT_SCALE), given)
    wanted = own.get("data", found.data)
    if not wanted:
        raise ValueError(
            f"scale={found.scale}: data=FOLDER is needed, with train.tsv and valid.tsv"
        )
    data = find_data(wanted)
    data.check(MAX_CLIPS)
    found = found.on(data.overrides)
    if not has_launcher(given):
        _check_settings(found, data)
    if dry_run:
        _list_cells(found, data)
        return
    if parallel is None:
        parallel = len(found.cells) if has_launcher(given) else 1
    folder = out or Path("outputs") / "study" / found.name
    settings: dict[str, object] = {
        "study": found.name,
        "scale": found.scale,
        "data": str(data.folder.resolve()),
        "overrides": given,
    }
    outcomes = _run(found, data, folder, settings, parallel)
    if outcomes is None:
        return
    _write(found, folder, outcomes)
    if failed := [each for each in outcomes if each.error]:
        for each in failed:
            typer.echo(f"{each.cell.name}: {each.error}", err=True)
        raise SystemExit(
            f"mae-ast: error: {len(failed)} of {plural(len(outcomes), 'cell')} failed; the same "
            "command tries them again"
        )


def _run(
    study: Study, data: StudyData, folder: Path, settings: dict[str, object], parallel: int
) -> list[Outcome] | None:
    """Run the cells; ``None`` if a signal stopped them."""
    from mae_ast.study.runs import Runner
    from mae_ast.trainer.child_training import Interrupted, Trainings
    from mae_ast.trainer.several_runs import working_in

    try:
        inputs = {"content": data.content()}
        with working_in(folder, settings, inputs) as lock, Trainings() as trainings:
            return Runner(study, data, folder, trainings, lock, parallel).run()
    except Interrupted as request:
        typer.echo(f"stopped on {request}; the same command resumes")
        return None


def _write(study: Study, folder: Path, outcomes: Sequence[Outcome]) -> None:
    """Write and print the tables, and write the plot."""
    from mae_ast.study.plot import study_figure
    from mae_ast.study.summary import SUMMARY_FILE, origin_of, write_summary
    from mae_ast.study.tables import compare, markdown, tabulated, write_csv

    write_csv(folder / CSV_FILE, study, outcomes)
    verdicts = compare(study, outcomes)
    origin = origin_of(folder, outcomes, ["mae-ast", *sys.argv[1:]])
    write_summary(folder / SUMMARY_FILE, study, outcomes, verdicts, origin)
    text = markdown(study, outcomes, verdicts, origin)
    (folder / TABLES_FILE).write_text(text, encoding="utf-8")
    typer.echo(text)
    written = [folder / CSV_FILE, folder / TABLES_FILE]
    if names := tabulated(study, outcomes):
        written.append(folder / PLOT_FILE)
        study_figure(study.title, outcomes, names).savefig(written[-1], dpi=120)
    for path in written:
        typer.echo(str(path))
    if names:
        typer.echo(f"curves, sounds and embeddings, for a browser: mae-ast report {folder}")


def _check_settings(study: Study, data: StudyData) -> None:
    """Compose the settings of each combination, so that errors show before training.

    Raises:
        ValueError: an override is invalid; the message names a cell.
    """
    from mae_ast.cli.quiet import quiet

    with quiet():
        from mae_ast.bench.plan import compose_settings  # fairseq, which logs when it is imported

        for cell in {cell.setting: cell for cell in study.cells}.values():
            try:
                compose_settings(data.folder, cell.config, cell.overrides)
            except ValueError as error:
                raise ValueError(f"{cell.name}: {error}") from error


def _list_cells(study: Study, data: StudyData) -> None:
    """Print all cells with the estimated time of each, and of all."""
    from mae_ast.cli.quiet import quiet
    from mae_ast.console import bar

    settings = {cell.setting: cell for cell in reversed(study.cells)}
    with quiet():
        from mae_ast.study.estimate import estimate

        seconds = estimate(settings, data, bar("estimating", "setting"))
    for cell in study.cells:
        minutes = seconds[cell.setting] / 60
        typer.echo(f"{cell.name:40} {minutes:7.1f} min  {cell.config} {' '.join(cell.overrides)}")
    total = sum(seconds[cell.setting] for cell in study.cells) / 60
    typer.echo(f"{plural(len(study.cells), 'cell')}, about {total:.0f} min, one after another")
