"""``mae-ast finetune CHECKPOINT DATA KEY=VALUE...``: a classifier on a pretrained model."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from mae_ast.cli.options import MULTIRUN


def finetune(
    context: typer.Context,
    checkpoint: Annotated[
        str,
        typer.Argument(
            help="A file, a run's folder, a released model's name, a URL, a hub id; where the "
            "preset's model is ast also timm:NAME."
        ),
    ],
    data: Annotated[
        Path, typer.Argument(help="Folder of labels.csv, train.tsv, train.lbl, valid.tsv, ...")
    ],
    config: Annotated[
        str,
        typer.Option(
            help="Preset name or path of a YAML file; required. Without it the presets are listed.",
            show_default=False,
        ),
    ] = "",
    out: Annotated[
        Path, typer.Option(help="Folder of the run; the same command again resumes it.")
    ] = Path("outputs/finetune"),
    random_weights: Annotated[
        bool,
        typer.Option(
            "--random-weights", help="Train the same network from random weights, as a baseline."
        ),
    ] = False,
    multirun: Annotated[bool, MULTIRUN] = False,
) -> None:
    """Fine-tune; every further argument goes to fairseq-hydra-train, KEY=VALUE or an option.

    On Ctrl-C, SIGTERM or SIGUSR1 the run saves and exits; the same command resumes it. A second
    Ctrl-C exits at once.
    """
    from mae_ast.trainer import stop_request, sweep
    from mae_ast.trainer.command import NOTE, begun_with, start_of, train_command
    from mae_ast.trainer.resume_guard import check_and_defer

    overrides = [*start_of(checkpoint, random_weights), *context.args]
    overrides += ["--multirun"] if multirun else []
    command = train_command(data, config, out, overrides, "finetune")
    settings = {
        **begun_with(data, config, checkpoint),
        "random_weights": random_weights,
        **sweep.note(overrides),
    }
    check_and_defer(out / NOTE, settings, sweep.has_begun(out))
    with stop_request.deferring():
        os.execv(sys.executable, command)
