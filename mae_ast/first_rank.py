"""Decisions that the first rank takes for all, such as what a run resumes from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

T = TypeVar("T")


def from_first_rank(trainer: Any, decide: Callable[[], T]) -> T:
    """Return on every rank what ``decide`` returns on the first; all ranks must call it.

    Args:
        trainer: fairseq's.
        decide: called on the first rank only; its result is pickled.

    Raises:
        ValueError: ``decide`` raised ``ValueError`` or ``OSError``, whose message this has.
    """
    result: T | None = None
    problem = None
    if trainer.data_parallel_rank == 0:
        try:
            result = decide()
        except (ValueError, OSError) as error:
            problem = str(error)
    if trainer.data_parallel_world_size > 1:
        outcome: list[Any] = [result, problem]
        torch.distributed.broadcast_object_list(
            outcome, src=0, group=trainer.data_parallel_process_group, device=trainer.device
        )
        result, problem = outcome
    if problem is not None:
        raise ValueError(problem)
    return result  # type: ignore[return-value]
