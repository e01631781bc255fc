"""``mae-ast superb TASK CHECKPOINT --data DIR``: fine-tune and test on SUPERB through s3prl."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Mode(StrEnum):
    """What to do."""

    TRAIN = "train"
    EVALUATE = "evaluate"


class Layout(StrEnum):
    """Layout of the upstream's features."""

    TIME_STEPS = "time_steps"
    TOKENS = "tokens"


def superb(
    context: typer.Context,
    task: Annotated[str, typer.Argument(help="ks, sid, er, or a downstream of s3prl.")],
    checkpoint: Annotated[
        str, typer.Argument(help="A file, a run's folder, or a released model's name.")
    ],
    data: Annotated[Path | None, typer.Option(help="Folder of the task's data.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the run; the same command again resumes it.", show_default=False
        ),
    ] = None,
    mode: Annotated[
        Mode, typer.Option(help="Train, or evaluate the checkpoint that was best on dev.")
    ] = Mode.TRAIN,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Training steps; default: the paper's.")
    ] = None,
    fold: Annotated[int, typer.Option(min=1, max=5, help="Session to test on, for er.")] = 1,
    layout: Annotated[
        Layout,
        typer.Option(
            help="time_steps: one vector per time step, its tokens side by side, as in s3prl. "
            "tokens: one vector per token, as in the paper's runs of patch models. Both are the "
            "same for frame models."
        ),
    ] = Layout.TIME_STEPS,
    device: Annotated[
        str | None, typer.Option(help="PyTorch device; default: a GPU if available.")
    ] = None,
) -> None:
    """Fine-tune on a task of SUPERB with the paper's settings, or test the result.

    What follows -- goes to s3prl's run_downstream. Default of --out: outputs/superb/TASK (for er:
    outputs/superb/er/foldN).
    """
    from mae_ast.superb.run import run

    folder = Path("outputs/superb") / task / (f"fold{fold}" if task == "er" else "")
    target, arguments = out or folder, context.args
    run(task, checkpoint, data, target, mode.value, steps, fold, device, arguments, layout.value)
