"""Exchange values between ranks, and make sure that they agree, without collectives.

Messages go through the rendezvous store, which needs no device and has no collective's time limit:
reading two million headers may take rank 0 an hour.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta

from torch import Tensor, distributed
from torch.distributed.distributed_c10d import Store, _get_default_store

_PATIENCE = timedelta(days=7)  # with the first process, which takes the store with it if it ends
_PATIENCE_WITH_ALL = timedelta(hours=1)  # with those that have what the first one gave them
_LEAVE = timedelta(minutes=1)
_VALUE, _ERROR = b"+", b"-"


def num_ranks() -> int:
    """Return the number of ranks."""
    return distributed.get_world_size() if _are_several() else 1


def is_first() -> bool:
    """Return whether this is rank 0, which alone prints what all ranks know."""
    return not _are_several() or distributed.get_rank() == 0


def from_first(key: str, compute: Callable[[], bytes]) -> bytes:
    """Compute a value on rank 0 and send it to all ranks.

    Args:
        key: name of the message, the same on all ranks; used once.
        compute: called on rank 0; the others wait.

    Raises:
        ValueError: it failed there, with the message of its ``ValueError`` or ``OSError``.
    """
    if not _are_several():
        return compute()
    store = _get_default_store()
    if distributed.get_rank() == 0:
        store.set(key, _outcome(compute))  # type: ignore[arg-type]  # bytes will do
    store.wait([key], _PATIENCE)
    outcome = bytes(store.get(key))
    if outcome.startswith(_ERROR):
        _leave_together(store, key)
    return _value(outcome)


def agree(key: str, what: str, compute: Callable[[], bytes]) -> None:
    """Compute a value on each rank and make sure that all are equal.

    Args:
        key: name of the messages, the same on all ranks; used once.
        what: name of the value, for messages.
        compute: called on each rank; returns a short value, such as a digest.

    Raises:
        ValueError: it failed on a rank, or ranks differ from the first; names them. Where this
            rank itself failed, with the message of its ``ValueError`` or ``OSError``.
    """
    if not _are_several():
        compute()
        return
    store, rank = _get_default_store(), distributed.get_rank()
    keys = [f"{key}/{each}" for each in range(distributed.get_world_size())]
    own = _outcome(compute)
    store.set(keys[rank], own)  # type: ignore[arg-type]
    store.wait(keys, _PATIENCE_WITH_ALL)
    outcomes = [bytes(outcome) for outcome in store.multi_get(keys)]
    if len(set(outcomes)) == 1 and own.startswith(_VALUE):
        return
    _leave_together(store, key)
    _value(own)
    failed = [each for each, outcome in enumerate(outcomes) if outcome.startswith(_ERROR)]
    if failed:
        raise ValueError(f"rank {_listed(failed)} failed: {outcomes[failed[0]][1:].decode()}")
    others = [each for each, outcome in enumerate(outcomes) if outcome != outcomes[0]]
    raise ValueError(
        f"{what} on rank {_listed(others)} differ from those on rank 0; give all processes the "
        "same files and settings"
    )


def _leave_together(store: Store, key: str) -> None:
    """Keep the store, which the first process has, until all know why they end."""
    rank = distributed.get_rank()
    keys = [f"{key}/left/{each}" for each in range(distributed.get_world_size())]
    store.set(keys[rank], "")
    if rank == 0:
        with suppress(RuntimeError):  # a rank is gone
            store.wait(keys, _LEAVE)


def maximum(values: Tensor) -> Tensor:
    """Return the element-wise maximum over all processes of an integer tensor on the CPU."""
    if not _are_several():
        return values
    is_gpu = distributed.get_backend() == distributed.Backend.NCCL
    moved = values.to("cuda") if is_gpu else values.clone()
    distributed.all_reduce(moved, distributed.ReduceOp.MAX)
    return moved.to(values.device)


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
        return _ERROR + str(error).encode(errors="replace")


def _value(outcome: bytes) -> bytes:
    if outcome.startswith(_ERROR):
        raise ValueError(outcome[1:].decode())
    return outcome[1:]


def _listed(ranks: list[int]) -> str:
    return ", ".join(map(str, ranks[:20])) + (", ..." if len(ranks) > 20 else "")
