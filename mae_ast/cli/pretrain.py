"""``mae-ast pretrain DATA KEY=VALUE...``: start a pretraining run."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from mae_ast.cli.options import Multirun, Overrides, PretrainPreset, RunFolder


def pretrain(
    data: Annotated[
        Path, typer.Argument(metavar="DATA", help="Folder with train.tsv and valid.tsv.")
    ],
    overrides: Overrides = None,
    config: PretrainPreset = "mae_ast",
    out: RunFolder = Path("outputs/mae_ast"),
    multirun: Multirun = False,
) -> None:
    """Pretrain a model on a folder of manifests.

    The run saves and exits on Ctrl-C, SIGTERM or SIGUSR1; the same command resumes it. A second
    Ctrl-C exits at once.
    """
    from mae_ast.trainer import stop_request, sweep
    from mae_ast.trainer.command import NOTE, run_identity, train_command
    from mae_ast.trainer.resume_guard import check_and_defer

    arguments = [*(overrides or []), *(["--multirun"] if multirun else [])]
    sweep.check_launcher(arguments)
    command = train_command(data, config, out, arguments)
    settings = {**run_identity(data, config), **sweep.note(arguments)}
    check_and_defer(out / NOTE, settings, sweep.has_begun(out))
    with stop_request.deferring():
        os.execv(sys.executable, command)
