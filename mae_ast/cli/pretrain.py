"""``mae-ast pretrain DATA KEY=VALUE...``: start a pretraining run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from mae_ast.cli.options import Multirun, Overrides, PretrainPreset, RunFolder, data_argument
from mae_ast.cli.start_training import start_training


def pretrain(
    data: Annotated[Path, data_argument("Folder with train.tsv and valid.tsv.")],
    overrides: Overrides = None,
    config: PretrainPreset = "mae_ast",
    out: RunFolder = Path("outputs/mae_ast"),
    multirun: Multirun = False,
) -> None:
    """Pretrain a model on a folder of manifests.

    The run saves and exits on Ctrl-C, SIGTERM or SIGUSR1; the same command resumes it. A second
    Ctrl-C exits at once.
    """
    start_training("pretrain", data, config, out, overrides, multirun)
