"""``mae-ast crossvalidate CHECKPOINT DATA KEY=VALUE...``: fine-tune and score on each fold."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mae_ast.cli.options import (
    Average,
    FinetunePreset,
    InitialCheckpoint,
    Overrides,
    RandomWeights,
)
from mae_ast.core.io.plural import plural

if TYPE_CHECKING:
    from mae_ast.evaluate.report import Evaluation


def crossvalidate(
    checkpoint: InitialCheckpoint,
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA",
            help="Folder with fold1, fold2, ..., each as 'mae-ast finetune' takes it.",
        ),
    ],
    overrides: Overrides = None,
    config: FinetunePreset = "",
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

    The run saves and exits on Ctrl-C, SIGTERM or SIGUSR1; the same command resumes it. A second
    Ctrl-C exits at once.
    """
    from mae_ast.finetune import crossvalidation as folds
    from mae_ast.trainer.child_training import Interrupted, Trainings
    from mae_ast.trainer.command import initial_weights, run_identity, train_command

    folders = folds.find_folds(data)
    given = overrides or []
    folds.check_overrides(given)
    arguments = [*initial_weights(checkpoint, random_weights), *given]
    commands = [
        train_command(folder, config, out / folder.name, arguments, "finetune")
        for folder in folders
    ]
    settings = {
        **run_identity(data, config, checkpoint),
        "random_weights": random_weights,
        "overrides": given,
    }
    scores, measure = [], ""
    try:
        with (
            folds.working_in(out, settings, folds.inputs_of(folders)) as lock,
            Trainings() as trainings,
        ):
            for folder, command in zip(folders, commands, strict=True):
                run = out / folder.name
                if not folds.is_trained(run):
                    typer.echo(f"{folder.name}: training")
                    trainings.run(command, [lock])
                # Some limits, such as stop_min_lr, are known to the trainer only: a run that ends
                # by itself is trained.
                if not folds.is_trained(run) and folds.was_interrupted(run):
                    raise ValueError(
                        f"{run}: ended before its last update was saved; the same command resumes"
                    )
                found = _evaluate(run, folder, average)
                measure = "mAP" if found.confusion is None else "accuracy"
                summary = found.summary
                value = summary.mean_average_precision if measure == "mAP" else summary.accuracy
                score = folds.FoldScore(folder.name, summary.num_clips, round(value, folds.DIGITS))
                scores.append(score)
                typer.echo(
                    f"{score.fold}: {measure} {score.score:.4f} of {plural(score.clips, 'clip')}"
                )
            folds.write_scores(out / folds.SCORES_FILE, scores, measure)
    except Interrupted as request:
        typer.echo(f"stopped on {request}; the same command resumes")
        return
    typer.echo(folds.table(scores, measure))
    typer.echo(str(out / folds.SCORES_FILE))


def _evaluate(run: Path, data: Path, average: int) -> Evaluation:
    from mae_ast.cli.device import place
    from mae_ast.console import bar
    from mae_ast.evaluate import report
    from mae_ast.finetune.checkpoint import load_finetuned
    from mae_ast.finetune.crossvalidation import HELD_OUT

    classifier = load_finetuned(run, average)
    place(classifier.model, None)
    found = report.evaluate(classifier, data, HELD_OUT, bar(f"scoring {run.name}", "clip"))
    report.write_report(found, run / "report", f"{run.name}, {HELD_OUT}")
    return found
