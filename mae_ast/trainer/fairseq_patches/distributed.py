"""Patches of fairseq 0.12.3 for training with several processes."""

from __future__ import annotations

import gc
import multiprocessing
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from fairseq.distributed import utils
from tensorboardX import SummaryWriter
from torch import distributed
from torch.multiprocessing.spawn import ProcessExitedException

from mae_ast.core.io.first_line import first_line
from mae_ast.core.io.plural import plural
from mae_ast.trainer import stop_request
from mae_ast.trainer.fairseq_patches import cpu_ranks

# Environment variables in which a launcher gives the rank; fairseq reads these.
_TORCHRUN = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK")
_SLURM = ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST")
_SIGNAL_NAMES = tuple(number.name for number in stop_request.SIGNALS)


def apply() -> None:
    """Apply the patches; call it once."""
    # Rank 0 reads a checkpoint for all, and the other ranks unpickle its message with torch.load,
    # which has refused classes of omegaconf and fairseq since torch 2.6, so that no run on several
    # processes resumes or starts from weights. torch's broadcast unpickles them; the bytes come
    # from this run. Remove when fairseq passes weights_only=False.
    utils._broadcast_object_slow = _broadcast

    # If a spawned process ends with a message, the launcher adds a traceback. Remove when fairseq
    # exits with the status of its processes.
    utils.call_main = _launched(utils.call_main)

    # If one process ends, the others end with a traceback of the transport. And a spawned process
    # closes the pipes of TensorBoard's writers before fairseq closes the writers, which ends in
    # tracebacks. Remove when fairseq reports the former in one line and closes its writers.
    utils.distributed_main = _joined(utils.distributed_main)


def configure_devices(cfg: Any) -> None:
    """Adapt the settings to this machine's devices; refuse those that they do not support.

    Raises:
        ValueError: names the setting and what would be valid.
    """
    on_gpu = _on_gpu(cfg)
    if cfg.common.fp16 and not on_gpu:
        reason = "common.cpu=true" if cfg.common.cpu else "this machine has none"
        raise ValueError(
            f"common.fp16=true needs a GPU ({reason}); set it to false, and use "
            "model.precision=bfloat16 for speed on a CPU"
        )
    if _are_several(cfg):
        (_check_gpus if on_gpu else cpu_ranks.configure)(cfg.distributed_training)


def num_ranks(training: Any) -> int:
    """Return the number of ranks, which torchrun sets, if the settings have more than one.

    Args:
        training: settings ``distributed_training.*``.
    """
    num = int(training.distributed_world_size)
    is_given = training.distributed_init_method is not None
    if num > 1 and not is_given and all(key in os.environ for key in _TORCHRUN):
        return int(os.environ["WORLD_SIZE"])
    return num


def _on_gpu(cfg: Any) -> bool:
    # In this order: GPUs can no longer be hidden once torch has queried them.
    return not cfg.common.cpu and torch.cuda.is_available()


def _are_several(cfg: Any) -> bool:
    return cfg.distributed_training.distributed_world_size > 1 and not cfg.common.tpu


def _check_gpus(training: Any) -> None:
    has_rendezvous = training.distributed_init_method is not None or _is_launched()
    if not has_rendezvous and torch.cuda.device_count() < training.distributed_world_size:
        raise ValueError(
            f"distributed_training.distributed_world_size={training.distributed_world_size}, but "
            f"this machine has {plural(torch.cuda.device_count(), 'GPU')}; lower it, add "
            "common.cpu=true, or start the run on several machines with torchrun or SLURM "
            "(docs/clusters.md)"
        )


def _is_launched() -> bool:
    """Return ``True`` if torchrun or SLURM sets the ranks."""
    return all(key in os.environ for key in _TORCHRUN) or any(k in os.environ for k in _SLURM)


def _broadcast(obj: Any, src_rank: int, group: Any, dist_device: torch.device) -> Any:
    objects = [obj]
    distributed.broadcast_object_list(objects, src=src_rank, group=group, device=dist_device)
    return objects[0]


def _launched(call_main: Callable[..., None]) -> Callable[..., None]:
    @wraps(call_main)
    def wrapper(cfg: Any, main: Callable[..., None], **kwargs: Any) -> None:
        stop_request.begin_training()
        training = cfg.distributed_training
        num_spawned = _infer_ranks(cfg) if _are_several(cfg) else 0
        if training.distributed_world_size == 1:
            stop_request.trains_alone()
        elif num_spawned:
            stop_request.launches()
        try:
            if num_spawned:
                _spawn(cfg, main, kwargs, num_spawned)
            else:
                call_main(cfg, main, **kwargs)
        except ProcessExitedException as error:  # the process has printed why
            if stop_request.is_requested() and error.signal_name in _SIGNAL_NAMES:
                raise SystemExit(0) from None  # received the signal while starting
            raise SystemExit(
                f"mae-ast: error: process {error.error_index} of this run ended with status "
                f"{error.exit_code}; see its message above"
            ) from None

    return wrapper


def _infer_ranks(cfg: Any) -> int:
    """Infer rank and rendezvous with fairseq, and return the number of processes to spawn."""
    training = cfg.distributed_training
    has_rendezvous = training.distributed_init_method is not None or _is_launched()
    if not has_rendezvous and training.distributed_port <= 0:
        training.distributed_port = _free_port()
    if _on_gpu(cfg):
        utils.infer_init_method(training, force_distributed=True)
        num_here = torch.cuda.device_count()
    else:
        cpu_ranks.check_ranks(training)
        num_here = cpu_ranks.num_processes(training)
        with cpu_ranks.as_devices(num_here):
            utils.infer_init_method(training, force_distributed=True)
        if not training.distributed_no_spawn:
            cpu_ranks.share_cores(num_here)
    return 0 if training.distributed_no_spawn else min(num_here, training.distributed_world_size)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return int(free.getsockname()[1])


def _spawn(cfg: Any, main: Callable[..., None], kwargs: dict[str, Any], count: int) -> None:
    """Train in ``count`` processes, like fairseq, which would start one per GPU."""
    training = cfg.distributed_training
    kwargs = {**kwargs, "start_rank": training.distributed_rank}
    training.distributed_rank = None  # each process sets its own
    spawn: Any = torch.multiprocessing.spawn  # type: ignore[attr-defined]
    with stop_request.spawning():
        ranks = spawn(spawned_rank, (main, cfg, kwargs), nprocs=count, join=False)
    while not ranks.join():
        pass


def spawned_rank(*args: Any) -> None:
    """Train as one of several processes.

    The program that started them may not have imported this package (as under submitit).

    Args:
        args: arguments of fairseq's ``distributed_main``.
    """
    from mae_ast.plugin import register

    stop_request.listen(spawned=True)
    register()
    utils.distributed_main(*args)


def _joined(distributed_main: Callable[..., None]) -> Callable[..., None]:
    @wraps(distributed_main)  # keeps its name, by which spawned processes import it
    def wrapper(*args: Any, **kwargs: Any) -> None:
        if multiprocessing.parent_process() is not None:
            # Python would also spawn the data workers, which would import PyTorch and fairseq in
            # each epoch. Fork them (if that is the default), as in a single process.
            multiprocessing.set_start_method(None, force=True)
        try:
            with peer_errors():
                distributed_main(*args, **kwargs)
        finally:
            _close_writers()

    return wrapper


def _close_writers() -> None:
    for each in gc.get_objects():
        if type(each) is SummaryWriter:
            each.close()


@contextmanager
def peer_errors() -> Iterator[None]:
    """Exit with one line if another process of the run has ended."""
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, distributed.DistError) or "gloo" in str(error)):
            raise
        if stop_request.is_requested() and not stop_request.has_updated():
            stop_request.end()
        reason = first_line(error)
        raise SystemExit(
            "mae-ast: error: another process of this run ended or did not respond; see its message "
            f"({reason})"
        ) from None
