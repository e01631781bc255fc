"""Helpers to train on two processes in tests (gloo, on the CPU)."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from pathlib import Path

from .conftest import DEADLINE_S, LAUNCHER, Start, Training
from .forked import ENVIRONMENT, Fork

TWO = "distributed_training.distributed_world_size=2"


def rank_overrides(rank: int, port: int) -> tuple[str, ...]:
    """Build the overrides for one of two ranks."""
    return (
        TWO,
        f"distributed_training.distributed_rank={rank}",
        "distributed_training.distributed_no_spawn=true",
        f"distributed_training.distributed_init_method=tcp://localhost:{port}",
        "distributed_training.distributed_backend=gloo",
        "distributed_training.ddp_backend=legacy_ddp",
    )


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return int(free.getsockname()[1])


def start_ranks(
    start: Start,
    data: Path | Sequence[Path],
    *overrides: str,
    out: str,
    program: Sequence[str] = LAUNCHER,
) -> list[Training]:
    """Start one command for each of two ranks.

    Args:
        start: function that starts a training.
        data: folder of manifests, or one for each rank, whose folder is then ``{out}_{rank}``.
        overrides: overrides for both ranks.
        out: folder of the run.
        program: program of each rank.
    """
    port = free_port()
    has_own_folders = not isinstance(data, Path)
    return [
        start(
            data[rank] if has_own_folders else data,
            *overrides,
            *rank_overrides(rank, port),
            out=f"{out}_{rank}" if has_own_folders else out,
            program=program,
        )
        for rank in range(2)
    ]


def last_lines(program: str, folder: Path, *arguments: Sequence[object]) -> list[str]:
    """Run a program as two ranks; return the last line that each prints.

    Args:
        program: its text.
        folder: folder for its file and logs.
        arguments: command line of each rank, after rank and port.
    """
    port = free_port()
    file = folder / "program.py"
    file.write_text(program)
    logs = [folder / f"rank{rank}.log" for rank in range(len(arguments))]
    running: list[Fork] = []
    try:
        for rank, (log, given) in enumerate(zip(logs, arguments, strict=True)):
            log.touch()
            command = [str(file), *map(str, (rank, port, *given))]
            env = {**os.environ, **ENVIRONMENT}
            running.append(Fork(command, folder, str(log), str(log), env))
        for each in running:
            each.wait(DEADLINE_S)
    finally:
        for each in running:
            each.kill()
    return [log.read_text().splitlines()[-1] for log in logs]
