"""``mae-ast pretrain DATA KEY=VALUE...``: fairseq-hydra-train with config and user-dir found."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from mae_ast.cli.options import MULTIRUN


def pretrain(
    context: typer.Context,
    data: Annotated[Path, typer.Argument(help="Folder of train.tsv and valid.tsv.")],
    config: Annotated[
        str, typer.Option(help="A preset's name, or the path of a YAML file.")
    ] = "mae_ast",
    out: Annotated[
        Path, typer.Option(help="Folder of the run; the same command again resumes it.")
    ] = Path("outputs/mae_ast"),
    multirun: Annotated[bool, MULTIRUN] = False,
) -> None:
    """Pretrain; every further argument goes to fairseq-hydra-train, KEY=VALUE or an option.

    On Ctrl-C, SIGTERM or SIGUSR1 the run saves and exits; the same command resumes it. A second
    Ctrl-C exits at once.
    """
    from mae_ast.trainer import stop_request, sweep
    from mae_ast.trainer.command import NOTE, begun_with, train_command
    from mae_ast.trainer.resume_guard import check_and_defer

    overrides = [*context.args, *(["--multirun"] if multirun else [])]
    command = train_command(data, config, out, overrides)
    settings = {**begun_with(data, config), **sweep.note(overrides)}
    check_and_defer(out / NOTE, settings, sweep.has_begun(out))
    with stop_request.deferring():
        os.execv(sys.executable, command)
