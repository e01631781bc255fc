"""``mae-ast pretrain DATA... KEY=VALUE...``: start a pretraining run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from mae_ast.cli.options import (
    DataAndOverrides,
    Multirun,
    PretrainPreset,
    RunFolder,
    data_argument,
    split_data,
)
from mae_ast.cli.start_training import start_training


def pretrain(
    data: Annotated[Path, data_argument("Folder with train.tsv and valid.tsv.")],
    overrides: DataAndOverrides = None,
    config: PretrainPreset = "mae_ast",
    out: RunFolder = Path("outputs/mae_ast"),
    multirun: Multirun = False,
) -> None:
    """Pretrain a model on a folder of manifests, or on a mixture of several.

    The run saves and exits on Ctrl-C, SIGTERM or SIGUSR1; the same command resumes it. A second
    Ctrl-C exits at once.
    """
    folders, settings = split_data(data, overrides or [])
    start_training("pretrain", folders, config, out, settings, multirun)
