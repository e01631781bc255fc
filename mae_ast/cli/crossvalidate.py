"""``mae-ast crossvalidate CHECKPOINT DATA KEY=VALUE...``: fine-tune and score on each fold."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mae_ast.cli.options import (
    Average,
    FinetunePreset,
    InitialCheckpoint,
    Overrides,
    RandomWeights,
    data_argument,
)
from mae_ast.cli.start_training import report_settings
from mae_ast.core.io.plural import plural

if TYPE_CHECKING:
    from mae_ast.finetune.crossvalidation import FoldScore
    from mae_ast.trainer.child_training import Trainings


def crossvalidate(
    checkpoint: InitialCheckpoint,
    data: Annotated[
        Path,
        data_argument("Folder with fold1, fold2, ..., each as 'mae-ast finetune' takes it."),
    ],
    overrides: Overrides = None,
    config: FinetunePreset = "own",
    out: Annotated[
        Path,
        typer.Option(help="Folder for the runs of the folds; the same command again resumes them."),
    ] = Path("outputs/crossvalidate"),
    random_weights: RandomWeights = False,
    average: Average = 1,
) -> None:
    """Fine-tune and score on each fold of a data set.

    Prints accuracy (mAP if clips have several labels) of the last checkpoint on the held-out clips
    of each fold, their mean and std, and writes them to OUT/folds.csv. The run of a
    fold is OUT/fold1, ..., its scores by class are in OUT/fold1/report.

    Without --config, settings follow from the data of each fold, as in 'mae-ast finetune'.

    The run saves and exits on Ctrl-C, SIGTERM or SIGUSR1; the same command resumes it. A second
    Ctrl-C exits at once.
    """
    from mae_ast.console import TRAINING, require
    from mae_ast.finetune import crossvalidation as folds
    from mae_ast.finetune.settings_from_data import NOTE_KEY, as_overrides
    from mae_ast.trainer.child_training import Interrupted, Trainings
    from mae_ast.trainer.command import (
        OWN_DATA_PRESET,
        initial_weights,
        run_identity,
        train_command,
    )
    from mae_ast.trainer.several_runs import working_in

    require(*TRAINING, "matplotlib")  # the last one for the report
    folders = folds.find_folds(data)
    given = overrides or []
    folds.check_overrides(given)
    start = initial_weights(checkpoint, random_weights)
    from_data = (
        _settings_of_folds(folders, out, checkpoint, given) if config == OWN_DATA_PRESET else {}
    )
    commands = {}
    for folder in folders:
        arguments = [*start, *as_overrides(from_data.get(folder.name, {}), given), *given]
        commands[folder] = train_command(folder, config, out / folder.name, arguments, "finetune")
    settings = {
        **run_identity(data, config, checkpoint),
        "random_weights": random_weights,
        "overrides": given,
        **({NOTE_KEY: from_data} if from_data else {}),
    }
    inputs = folds.inputs_of(folders)
    try:
        with working_in(out, settings, inputs) as lock, Trainings() as trainings:
            scores = []
            for folder, command in commands.items():
                _train(trainings, command, lock, out / folder.name)
                scores.append(_score(out / folder.name, folder, average))
            folds.write_scores(out / folds.SCORES_FILE, scores)
    except Interrupted as request:
        typer.echo(f"stopped on {request}; the same command resumes")
        return
    typer.echo(folds.table(scores))
    typer.echo(str(out / folds.SCORES_FILE))


def _settings_of_folds(
    folders: list[Path], out: Path, checkpoint: str, given: list[str]
) -> dict[str, Any]:
    """Return the settings of each fold from its data, by its name, and print those of the first."""
    from mae_ast.finetune.settings_from_data import NOTE_KEY, as_overrides, settings_of_run
    from mae_ast.trainer import resume_guard
    from mae_ast.trainer.several_runs import SETTINGS_FILE, has_begun

    recorded = resume_guard.recorded(out / SETTINGS_FILE, NOTE_KEY) if has_begun(out) else None
    found: dict[str, Any] = {}
    for folder in folders:
        of_fold = (recorded or {}).get(folder.name)
        found[folder.name], origin = settings_of_run(of_fold, folder, checkpoint, given)
        if len(found) == 1:
            report_settings(as_overrides(found[folder.name], given), f"{folder.name}: {origin}")
    return found


def _train(trainings: Trainings, command: list[str], lock: int, run: Path) -> None:
    """Train on a fold, unless its run has reached its end.

    Raises:
        ValueError: the run was interrupted, and its last update not saved.
    """
    from mae_ast.trainer.several_runs import is_trained, was_interrupted

    if is_trained(run):
        return
    typer.echo(f"{run.name}: training")
    trainings.run(command, [lock])
    # Some limits, such as stop_min_lr, are known to the trainer only: a run that ends by itself is
    # trained.
    if not is_trained(run) and was_interrupted(run):
        raise ValueError(f"{run}: ended before its last update was saved; the same command resumes")


def _score(run: Path, data: Path, average: int) -> FoldScore:
    """Score the classifier of a fold on its held-out clips, and write a report."""
    from mae_ast.cli.device import load_classifier
    from mae_ast.console import bar
    from mae_ast.evaluate import report
    from mae_ast.evaluate.training_curves import write_curves
    from mae_ast.finetune.crossvalidation import DIGITS, HELD_OUT, FoldScore

    classifier = load_classifier(run, average, None)
    found = report.evaluate(classifier, data, HELD_OUT, bar(f"scoring {run.name}", "clip"))
    report.write_report(found, run / "report", f"{run.name}, {HELD_OUT}")
    write_curves(run, run / "report")
    summary = found.summary
    measure, value = "accuracy", summary.accuracy
    if found.confusion is None:
        measure, value = "mAP", summary.mean_average_precision
    score = FoldScore(data.name, summary.num_clips, measure, round(value, DIGITS))
    typer.echo(f"{score.fold}: {measure} {score.score:.4f} of {plural(score.clips, 'clip')}")
    return score
