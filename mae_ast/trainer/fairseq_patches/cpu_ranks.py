"""Train with CPU processes: gloo instead of NCCL, one rank per process instead of GPU."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from typing import Any

import torch

from mae_ast.trainer.fairseq_patches.replaced import replaced

_THREADS = "OMP_NUM_THREADS"
# torch's wrapper, fairseq's default, passes device IDs and so refuses a model on the CPU.
_NEEDS_DEVICES = ("pytorch_ddp", "c10d")
_WORKS = ("legacy_ddp", "no_c10d")


def configure(training: Any) -> None:
    """Choose backends that work on a CPU, and hide the GPUs, which fairseq would use for messages.

    Args:
        training: settings ``distributed_training.*``; changed in place.

    Raises:
        ValueError: ``ddp_backend`` needs GPUs.
    """
    if training.ddp_backend not in (*_NEEDS_DEVICES, *_WORKS):
        raise ValueError(
            f"distributed_training.ddp_backend={training.ddp_backend} needs GPUs; set it to "
            "legacy_ddp on a CPU"
        )
    if training.ddp_backend in _NEEDS_DEVICES:
        training.ddp_backend = _WORKS[0]
    if training.distributed_backend == "nccl":
        training.distributed_backend = "gloo"
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


def check_ranks(training: Any) -> None:
    """Refuse a rank given to a command that starts processes for all ranks.

    Raises:
        ValueError: names the setting and what would be valid.
    """
    if training.distributed_rank and not training.distributed_no_spawn:
        raise ValueError(
            f"distributed_training.distributed_rank={training.distributed_rank} on a CPU requires "
            "one command per rank; add distributed_training.distributed_no_spawn=true"
        )


def num_processes(training: Any) -> int:
    """Return the number of processes on this machine."""
    num_machines = int(os.environ.get("SLURM_NNODES", "1"))
    return max(1, int(training.distributed_world_size) // num_machines)


def as_devices(count: int) -> AbstractContextManager[None]:
    """Let fairseq derive ranks from the number of processes instead of GPUs."""
    return replaced(torch.cuda, device_count=lambda: count, set_device=lambda device: None)


def share_cores(count: int) -> None:
    """Divide the threads among the processes started from now on, unless their number is set."""
    os.environ.setdefault(_THREADS, str(max(1, torch.get_num_threads() // count)))
