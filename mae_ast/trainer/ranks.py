"""Exchange and compare values between ranks without collectives.

Messages are sent through the rendezvous store. It needs no device, and its timeout is independent
of that of collectives: rank 0 may take an hour to read two million headers.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta

from torch import Tensor, distributed
from torch.distributed import distributed_c10d
from torch.distributed.distributed_c10d import Store, _get_default_store

from mae_ast.console import is_for_user

_RANK_0_TIMEOUT = timedelta(days=7)  # if rank 0 ends, the store ends with it
_ALL_RANKS_TIMEOUT = timedelta(hours=1)  # other ranks already have the value of rank 0
_EXIT_TIMEOUT = timedelta(minutes=1)
_COLLECTIVES_WAIT_S = 1800.0  # the higher one of torch's defaults
_VALUE, _ERROR = b"+", b"-"


def num_ranks() -> int:
    """Return the number of ranks."""
    return distributed.get_world_size() if _are_several() else 1


def is_first() -> bool:
    """Return ``True`` on rank 0, the only one that prints messages common to all ranks."""
    return not _are_several() or distributed.get_rank() == 0


def from_first(key: str, compute: Callable[[], bytes]) -> bytes:
    """Compute a value on rank 0 and send it to all ranks.

    Args:
        key: name of the message, the same on all ranks; used once.
        compute: called on rank 0; the others wait.

    Raises:
        ValueError: ``compute`` failed on rank 0, with the message of its ``ValueError`` or
            ``OSError``.
    """
    if not _are_several():
        return compute()
    store = _get_default_store()
    if distributed.get_rank() == 0:
        store.set(key, _outcome(compute))  # type: ignore[arg-type]  # bytes will do
    store.wait([key], _RANK_0_TIMEOUT)
    outcome = bytes(store.get(key))
    if outcome.startswith(_ERROR):
        _exit_together(store, key)
    return _value(outcome)


def agree(key: str, what: str, compute: Callable[[], bytes]) -> None:
    """Compute a value on each rank and check that all are equal.

    Args:
        key: name of the messages, the same on all ranks; used once.
        what: name of the value in messages, in the plural.
        compute: called on each rank; returns a short value, such as a digest.

    Raises:
        ValueError: ``compute`` failed on a rank, or values differ from that of rank 0; names the
            ranks. A rank that failed raises the message of its own ``ValueError`` or ``OSError``.
    """
    if not _are_several():
        compute()
        return
    store, rank = _get_default_store(), distributed.get_rank()
    keys = [f"{key}/{each}" for each in range(distributed.get_world_size())]
    own = _outcome(compute)
    store.set(keys[rank], own)  # type: ignore[arg-type]
    store.wait(keys, _ALL_RANKS_TIMEOUT)
    outcomes = [bytes(outcome) for outcome in store.multi_get(keys)]
    if len(set(outcomes)) == 1 and own.startswith(_VALUE):
        return
    _exit_together(store, key)
    _value(own)
    failed = [each for each, outcome in enumerate(outcomes) if outcome.startswith(_ERROR)]
    if failed:
        raise ValueError(f"rank {_listed(failed)} failed: {outcomes[failed[0]][1:].decode()}")
    others = [each for each, outcome in enumerate(outcomes) if outcome != outcomes[0]]
    raise ValueError(
        f"{what} on rank {_listed(others)} differ from those on rank 0; give all processes the "
        "same files and settings"
    )


def _exit_together(store: Store, key: str) -> None:
    """Keep the store, which rank 0 serves, until all ranks have read the message."""
    rank = distributed.get_rank()
    keys = [f"{key}/left/{each}" for each in range(distributed.get_world_size())]
    store.set(keys[rank], "")
    if rank == 0:
        with suppress(RuntimeError):  # a rank is gone
            store.wait(keys, _EXIT_TIMEOUT)


def maximum(values: Tensor) -> Tensor:
    """Return the element-wise maximum over all ranks of an integer tensor on the CPU."""
    if not _are_several():
        return values
    is_gpu = distributed.get_backend() == distributed.Backend.NCCL
    moved = values.to("cuda") if is_gpu else values.clone()
    distributed.all_reduce(moved, distributed.ReduceOp.MAX)
    return moved.to(values.device)


def allow_waits(seconds: float) -> None:
    """Let ranks wait at least this long for each other, in collectives of all process groups.

    By default they wait for 10 minutes with NCCL and 30 with gloo, then the run crashes.
    """
    if not _are_several():
        return
    limit = timedelta(seconds=max(seconds, _COLLECTIVES_WAIT_S))
    for group in list(distributed_c10d._world.pg_map):
        distributed_c10d._set_pg_timeout(limit, group)


def _are_several() -> bool:
    return (
        distributed.is_available()
        and distributed.is_initialized()
        and distributed.get_world_size() > 1
    )


def _outcome(compute: Callable[[], bytes]) -> bytes:
    try:
        return _VALUE + compute()
    except (ValueError, OSError) as error:
        if not is_for_user(error):  # all ranks end with its message; this one shows where it arose
            traceback.print_exception(error)
        return _ERROR + str(error).encode(errors="replace")


def _value(outcome: bytes) -> bytes:
    if outcome.startswith(_ERROR):
        raise ValueError(outcome[1:].decode())
    return outcome[1:]


def _listed(ranks: list[int]) -> str:
    return ", ".join(map(str, ranks[:20])) + (", ..." if len(ranks) > 20 else "")
