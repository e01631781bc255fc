"""``mae-ast pretrain DATA KEY=VALUE...``: fairseq-hydra-train with config and user-dir found."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from mae_ast.train_command import train_command


def pretrain(
    context: typer.Context,
    data: Annotated[Path, typer.Argument(help="Folder of train.tsv and valid.tsv.")],
    config: Annotated[
        str, typer.Option(help="A preset's name, or the path of a YAML file.")
    ] = "mae_ast",
    out: Annotated[
        Path, typer.Option(help="Folder of the run; the same again goes on with it.")
    ] = Path("outputs/mae_ast"),
) -> None:
    """Pretrain; every further argument goes to fairseq-hydra-train, KEY=VALUE or an option.

    On SIGTERM or SIGUSR1 the run saves and ends; the same command goes on from there.
    """
    os.execv(sys.executable, train_command(data, config, out, context.args))
