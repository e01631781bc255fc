"""``mae-ast finetune CHECKPOINT DATA KEY=VALUE...``: start a fine-tuning run."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from mae_ast.cli.options import (
    FinetunePreset,
    InitialCheckpoint,
    Multirun,
    Overrides,
    RandomWeights,
    RunFolder,
)


def finetune(
    checkpoint: InitialCheckpoint,
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA", help="Folder with labels.csv, train.tsv, train.lbl, valid.tsv, ..."
        ),
    ],
    overrides: Overrides = None,
    config: FinetunePreset = "",
    out: RunFolder = Path("outputs/finetune"),
    random_weights: RandomWeights = False,
    multirun: Multirun = False,
) -> None:
    """Fine-tune a model as a classifier of labelled clips.

    The run saves and exits on Ctrl-C, SIGTERM or SIGUSR1; the same command resumes it. A second
    Ctrl-C exits at once.
    """
    from mae_ast.trainer import stop_request, sweep
    from mae_ast.trainer.command import NOTE, initial_weights, run_identity, train_command
    from mae_ast.trainer.resume_guard import check_and_defer

    arguments = [*initial_weights(checkpoint, random_weights), *(overrides or [])]
    arguments += ["--multirun"] if multirun else []
    sweep.check_launcher(arguments)
    command = train_command(data, config, out, arguments, "finetune")
    settings = {
        **run_identity(data, config, checkpoint),
        "random_weights": random_weights,
        **sweep.note(arguments),
    }
    check_and_defer(out / NOTE, settings, sweep.has_begun(out))
    with stop_request.deferring():
        os.execv(sys.executable, command)
