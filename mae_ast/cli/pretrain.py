"""``mae-ast pretrain DATA KEY=VALUE...``: fairseq-hydra-train with config and user-dir found."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from mae_ast import stop_request
from mae_ast.train_command import NOTE, begun_with, train_command


def pretrain(
    context: typer.Context,
    data: Annotated[Path, typer.Argument(help="Folder of train.tsv and valid.tsv.")],
    config: Annotated[
        str, typer.Option(help="A preset's name, or the path of a YAML file.")
    ] = "mae_ast",
    out: Annotated[
        Path, typer.Option(help="Folder of the run; the same command again resumes it.")
    ] = Path("outputs/mae_ast"),
) -> None:
    """Pretrain; every further argument goes to fairseq-hydra-train, KEY=VALUE or an option.

    On Ctrl-C, SIGTERM or SIGUSR1 the run saves and exits; the same command resumes it. A second
    Ctrl-C exits at once.
    """
    from mae_ast.core.checkpoint import RUN_FILE
    from mae_ast.core.run_files import list_checkpoints
    from mae_ast.run_note import check_and_defer

    command = train_command(data, config, out, context.args)
    check_and_defer(
        out / NOTE, begun_with(data, config), bool(list_checkpoints(out / RUN_FILE.parent))
    )
    stop_request.defer()
    os.execv(sys.executable, command)
