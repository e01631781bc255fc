"""Start a training: replace this process by the one that trains."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import typer


def start_training(
    kind: str,
    data: Sequence[Path],
    config: str,
    out: Path,
    overrides: Sequence[str] | None,
    multirun: bool,
    *,
    checkpoint: str | None = None,
    random_weights: bool = False,
) -> NoReturn:
    """Start or resume a run of a kind, ``pretrain`` or ``finetune``, with the command's arguments.

    Fine-tuning reads a single folder of ``data``.

    Raises:
        ValueError: the preset does not exist, the run was started with different settings, or
            packages are missing.
    """
    from mae_ast.console import TRAINING, require
    from mae_ast.trainer import resume_guard, run_record, stop_request, sweep
    from mae_ast.trainer.command import (
        NOTE,
        OWN_DATA_PRESET,
        initial_weights,
        run_identity,
        train_command,
    )

    require(*TRAINING)
    arguments = [*(overrides or []), *(["--multirun"] if multirun else [])]
    settings: dict[str, Any] = dict(run_identity(data, config, checkpoint))
    has_begun = sweep.has_begun(out)
    if checkpoint is not None:
        settings["random_weights"] = random_weights
        if config == OWN_DATA_PRESET:
            from mae_ast.finetune.settings_from_data import NOTE_KEY, as_overrides, settings_of_run

            recorded = resume_guard.recorded(out / NOTE, NOTE_KEY) if has_begun else None
            found, origin = settings_of_run(recorded, data[0], checkpoint, arguments)
            settings[NOTE_KEY] = found
            from_data = as_overrides(found, arguments)
            report_settings(from_data, origin)
            arguments = [*from_data, *arguments]
        arguments = [*initial_weights(checkpoint, random_weights), *arguments]
    sweep.check_launcher(arguments)
    command = train_command(data, config, out, arguments, kind)
    settings |= sweep.note(arguments)
    resume_guard.check_and_defer(out / NOTE, settings, has_begun)
    run_record.defer_command()
    with stop_request.deferring():
        os.execv(sys.executable, command)


def report_settings(overrides: Sequence[str], origin: str) -> None:
    """Print the settings that follow from the data, in one line."""
    typer.echo(f"settings from the data ({origin}): {' '.join(overrides)}", err=True)
