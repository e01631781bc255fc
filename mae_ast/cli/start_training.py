"""Start a training: replace this process by the one that trains."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn


def start_training(
    kind: str,
    data: Path,
    config: str,
    out: Path,
    overrides: Sequence[str] | None,
    multirun: bool,
    *,
    checkpoint: str | None = None,
    random_weights: bool = False,
) -> NoReturn:
    """Start or resume a run of a kind, ``pretrain`` or ``finetune``, with the command's arguments.

    Raises:
        ValueError: the preset does not exist, the run was started with different settings, or
            packages are missing.
    """
    from mae_ast.extras import TRAINING, require
    from mae_ast.trainer import resume_guard, run_record, stop_request, sweep
    from mae_ast.trainer.command import NOTE, initial_weights, run_identity, train_command

    require(*TRAINING)
    arguments = [*(overrides or []), *(["--multirun"] if multirun else [])]
    settings: dict[str, Any] = dict(run_identity(data, config, checkpoint))
    if checkpoint is not None:
        arguments = [*initial_weights(checkpoint, random_weights), *arguments]
        settings["random_weights"] = random_weights
    sweep.check_launcher(arguments)
    command = train_command(data, config, out, arguments, kind)
    settings |= sweep.note(arguments)
    resume_guard.check_and_defer(out / NOTE, settings, sweep.has_begun(out))
    run_record.defer_command()
    with stop_request.deferring():
        os.execv(sys.executable, command)
