"""Trainings on two processes for tests (gloo, on the CPU)."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path

from .conftest import LAUNCHER, Start, Training


def rank_overrides(rank: int, port: int) -> tuple[str, ...]:
    """What the command of one of two ranks adds to that of a process alone."""
    return (
        "distributed_training.distributed_world_size=2",
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


def two_processes(
    start: Start,
    corpus: Path,
    out: str,
    *overrides: str,
    program: Sequence[str] = LAUNCHER,
    **environment: str,
) -> list[Training]:
    """One command for each rank, both at once, of a run in the folder ``out``."""
    port = free_port()
    return [
        start(
            corpus,
            *overrides,
            *rank_overrides(rank, port),
            out=out,
            program=program,
            **environment,
        )
        for rank in range(2)
    ]
