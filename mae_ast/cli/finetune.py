"""``mae-ast finetune CHECKPOINT DATA KEY=VALUE...``: start a fine-tuning run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from mae_ast.cli.options import (
    FinetunePreset,
    InitialCheckpoint,
    Multirun,
    Overrides,
    RandomWeights,
    RunFolder,
    data_argument,
)
from mae_ast.cli.start_training import start_training


def finetune(
    checkpoint: InitialCheckpoint,
    data: Annotated[
        Path,
        data_argument("Folder with labels.csv, train.tsv, train.lbl, valid.tsv, ..."),
    ],
    overrides: Overrides = None,
    config: FinetunePreset = "own",
    out: RunFolder = Path("outputs/finetune"),
    random_weights: RandomWeights = False,
    multirun: Multirun = False,
) -> None:
    """Fine-tune a model as a classifier of labelled clips.

    Without --config, batch size, epochs, learning rate, length of the clips, class balancing and
    the kind of labels follow from the data; they are printed, and KEY=VALUE overrides them.

    The run saves and exits on Ctrl-C, SIGTERM or SIGUSR1; the same command resumes it. A second
    Ctrl-C exits at once.
    """
    start_training(
        "finetune",
        [data],
        config,
        out,
        overrides,
        multirun,
        checkpoint=checkpoint,
        random_weights=random_weights,
    )
