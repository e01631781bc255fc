"""Record of a run's starts, ``starts.jsonl``: command, versions, commit and hardware of each."""

from __future__ import annotations

import json
import logging
import os
import secrets
import shlex
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mae_ast import __version__
from mae_ast.trainer.metrics_log import now

STARTS_FILE = "starts.jsonl"  # in a run's folder

_COMMAND = "MAE_AST_COMMAND"  # environment variable: command and folder, for the training process

logger = logging.getLogger(__name__)


def defer_command() -> None:
    """Hand this program's command over to the process that trains, which replaces it."""
    os.environ |= started_by([Path(sys.argv[0]).name, *sys.argv[1:]])


def started_by(command: Sequence[str]) -> dict[str, str]:
    """Return the environment in which a training process records this command as its own."""
    return {_COMMAND: json.dumps([shlex.join(command), os.getcwd()])}


def first_start(folder: Path) -> dict[str, Any]:
    """Return the first start of a run; empty if it is not recorded."""
    path = folder / STARTS_FILE
    with suppress(OSError, ValueError):
        found = json.loads(path.read_text(encoding="utf-8").partition("\n")[0])
        return found if isinstance(found, dict) else {}
    return {}


def append(folder: Path, num_updates: int, device: str, processes: int, **more: Any) -> None:
    """Append a line for this start.

    Args:
        folder: folder of the run.
        num_updates: updates of the run so far.
        device: "cpu" or "cuda".
        processes: number of training processes.
        more: further entries.
    """
    from mae_ast.bench.machine import commit, hardware, versions  # imports torch

    command, started_in = json.loads(os.environ.get(_COMMAND, "null")) or _own_command()
    start = {
        "timestamp": now(),
        "num_updates": num_updates,
        "command": command,
        "folder": started_in,
        "host": socket.gethostname(),
        "hardware": hardware(device),
        "processes": processes,
        "commit": commit(),
        "versions": {"mae-ast": __version__, **versions()},
        **more,
    }
    path = folder / STARTS_FILE
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{json.dumps(start)}\n")
    except OSError as error:
        logger.warning("%s: cannot be written (%s)", path, error.strerror or error)


def wandb_run_id(folder: Path, num_updates: int) -> str:
    """Return the ID of the Weights & Biases run: the one recorded last if the run resumes.

    Args:
        folder: folder of the run.
        num_updates: updates of the run so far; 0: it gets a new ID.
    """
    path = folder / STARTS_FILE
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    for line in reversed(lines if num_updates else []):
        with suppress(ValueError):  # a line that was not written to its end
            if recorded := json.loads(line).get("wandb_run_id"):
                return str(recorded)
    return secrets.token_hex(4)


def _own_command() -> tuple[str, str]:
    from hydra.core.hydra_config import HydraConfig

    if HydraConfig.initialized():
        return shlex.join(sys.argv), HydraConfig.get().runtime.cwd
    # In a process spawned by the trainer only the shell's variable still holds the folder.
    return shlex.join(sys.argv), os.environ.get("PWD", os.getcwd())
