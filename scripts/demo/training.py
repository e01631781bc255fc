"""Train in child processes, with a progress bar."""

from __future__ import annotations

from pathlib import Path

from mae_ast.console import progress_bar
from mae_ast.core.checkpoints.reader import RUN_FILE, read_state
from mae_ast.trainer.child_training import Interrupted, Trainings, training_environment, update_of
from mae_ast.trainer.command import train_command

_SHOWN = ("mse", "info_nce_accuracy", "accuracy")  # next to the progress bar


def num_updates(checkpoint: Path) -> int:
    """Return the number of updates of a training checkpoint; 0 if it does not exist."""
    if not checkpoint.is_file():
        return 0
    return int(read_state(checkpoint)["optimizer_history"][-1]["num_updates"])


def train(
    corpus: Path,
    run: Path,
    updates: int,
    overrides: list[str] | None = None,
    kind: str = "pretrain",
) -> None:
    """Train with the preset ``demo``, or resume an interrupted run.

    Args:
        corpus: folder of the manifests.
        run: folder of the run, with the process's output in ``train.log``.
        updates: total number of updates.
        overrides: further settings, ``KEY=VALUE``.
        kind: "pretrain" or "finetune".

    Raises:
        SystemExit: training failed (the message names its log), or was stopped (after Ctrl-C, with
            status 0, once it has saved).
    """
    run.mkdir(parents=True, exist_ok=True)
    log_file = run / "train.log"
    settings = [f"optimization.max_update={updates}", *(overrides or [])]
    command = train_command(corpus, "demo", run, settings, kind)
    last = run / RUN_FILE
    title = "pretraining" if kind == "pretrain" else f"fine-tuning, {run.name.replace('_', ' ')}"
    with (
        log_file.open("a", buffering=1) as log,
        progress_bar(title, "update", updates) as progress,
        Trainings() as trainings,
    ):

        def record(line: str) -> None:
            log.write(line)
            if values := update_of(line):
                progress.update(int(values["num_updates"]) - progress.n)
                progress.set_postfix({key: values[key] for key in _SHOWN if key in values})

        try:
            trainings.run(command, environment=training_environment(), on_line=record)
        except ValueError as error:
            raise SystemExit(f"mae-ast: error: training failed, see {log_file}") from error
        except Interrupted:
            progress.close()
            print(_stopped(last, updates))
            raise SystemExit(0) from None
    if num_updates(last) < updates:  # the training process itself received a signal
        raise SystemExit(f"mae-ast: error: {_stopped(last, updates)}")


def _stopped(last: Path, updates: int) -> str:
    return f"stopped after {num_updates(last)} of {updates} updates; the same command resumes"
