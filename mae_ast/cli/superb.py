"""``mae-ast superb TASK CHECKPOINT --data DIR``: fine-tune and test on SUPERB."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mae_ast.cli.options import RUN_FOLDER_HELP, Checkpoint, Choice, Device


class Mode(Choice):
    """Training or evaluation."""

    TRAIN = "train"
    EVALUATE = "evaluate"


class Layout(Choice):
    """Layout of the upstream's features."""

    TIME_STEPS = "time_steps"
    TOKENS = "tokens"


def superb(
    task: Annotated[
        str,
        typer.Argument(
            metavar="TASK", help="ks, sid, er, or the name of an s3prl downstream task."
        ),
    ],
    checkpoint: Checkpoint,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="-- ARGUMENT",
            help="Further arguments for s3prl's run_downstream.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of the task's data.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help=f"{RUN_FOLDER_HELP} Default: outputs/superb/TASK; for er, "
            "outputs/superb/er/foldN.",
        ),
    ] = None,
    mode: Annotated[
        Mode, typer.Option(help="Train, or test the checkpoint that was best on the dev set.")
    ] = Mode.TRAIN,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Number of training steps; default: as in the paper.")
    ] = None,
    fold: Annotated[
        int, typer.Option(min=1, max=5, help="Fold of er: the session to test on.")
    ] = 1,
    layout: Annotated[
        Layout,
        typer.Option(
            help="Layout of the features. time_steps: one vector per time step, its tokens "
            "concatenated, as in s3prl; tokens: one vector per token, as in the paper's runs of "
            "patch models. Both are the same for frame models."
        ),
    ] = Layout.TIME_STEPS,
    device: Device = None,
) -> None:
    """Fine-tune and test on a task of SUPERB with s3prl.

    Settings are those of the paper; arguments after -- are passed on to s3prl's run_downstream.
    """
    from mae_ast.superb.run import run

    folder = Path("outputs/superb") / task / (f"fold{fold}" if task == "er" else "")
    target, given = out or folder, arguments or []
    run(task, checkpoint, data, target, mode.value, steps, fold, device, given, layout.value)
