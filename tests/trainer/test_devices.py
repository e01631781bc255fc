"""Settings that the devices do not support are refused; several processes run on a CPU."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import subprocess
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq.dataclass.configs import DistributedTrainingConfig
from fairseq.distributed import utils
from omegaconf import OmegaConf
from tensorboardX import SummaryWriter
from torch.multiprocessing.spawn import ProcessExitedException

from mae_ast import plugin
from mae_ast.trainer import stop_request
from mae_ast.trainer.fairseq_patches import distributed as fairseq_distributed
from mae_ast.trainer.fairseq_patches.distributed import configure_devices

from .conftest import LAUNCHER, ONLY_TRAINING, Start, write_clips
from .ranks import TWO, rank_overrides


def settings(*overrides: str) -> Any:
    defaults = {
        "common": {"cpu": False, "fp16": False, "tpu": False},
        "distributed_training": {
            "distributed_world_size": 1,
            "distributed_init_method": None,
            "distributed_no_spawn": False,
            "distributed_backend": "nccl",
            "distributed_rank": 0,
            "distributed_port": -1,
            "ddp_backend": "pytorch_ddp",
        },
    }
    return OmegaConf.merge(defaults, OmegaConf.from_dotlist(list(overrides)))


SLURM = {
    "SLURM_JOB_NODELIST": "host1",
    **{"SLURM_NNODES": "1", "SLURM_NODEID": "0", "SLURM_PROCID": "1", "SLURM_LOCALID": "1"},
}
ON_CPU = tuple(each for each in rank_overrides(0, 1234) if "rank=" not in each)


@pytest.mark.parametrize(
    ("num_gpus", "overrides", "words"),
    [
        (0, ["common.fp16=true"], ["common.fp16=true needs a GPU", "machine has none"]),
        (1, ["common.fp16=true", "common.cpu=true"], ["common.fp16=true", "common.cpu=true"]),
        (0, [TWO, "distributed_training.ddp_backend=slowmo"], ["slowmo needs GPUs", "legacy_ddp"]),
        (1, [TWO], [f"{TWO}, but this machine has 1 GPU", "torchrun or SLURM"]),
    ],
)
def test_unsupported_settings_are_named(
    monkeypatch: pytest.MonkeyPatch, num_gpus: int, overrides: list[str], words: list[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: num_gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    with pytest.raises(ValueError, match=words[0]) as refusal:
        configure_devices(settings(*overrides))
    message = str(refusal.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("num_gpus", "overrides"),
    [
        (0, []),
        (0, ["common.cpu=true"]),
        (0, [TWO]),
        (2, [TWO, "common.cpu=true"]),
        (0, ON_CPU),
        (1, [*ON_CPU, "common.cpu=true"]),
        (1, ["common.fp16=true"]),
        (2, [TWO, "common.fp16=true"]),
        (1, [TWO, "distributed_training.distributed_init_method=tcp://host:1"]),
    ],
)
def test_supported_settings_are_accepted(
    monkeypatch: pytest.MonkeyPatch, num_gpus: int, overrides: list[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: num_gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    configure_devices(settings(*overrides))


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", os.environ.copy())


def full_settings(*overrides: str) -> Any:
    """Build settings with all of fairseq's keys."""
    cfg = settings(*overrides)
    cfg.distributed_training = OmegaConf.merge(
        OmegaConf.structured(DistributedTrainingConfig), cfg.distributed_training
    )
    return cfg


@dataclass
class Spawned:
    """Function and number of processes that would be spawned, and their settings."""

    run: Any
    count: int
    training: Any
    threads: str
    gpus: str


def spawned(monkeypatch: pytest.MonkeyPatch, *overrides: str) -> Spawned:
    """Return the processes that settings spawn, without spawning them."""
    found = []

    def spawn(main: Any, arguments: Any, nprocs: int, **_: Any) -> Any:
        training = arguments[1].distributed_training
        environment = os.environ["OMP_NUM_THREADS"], os.environ.get("CUDA_VISIBLE_DEVICES", "all")
        found.append(Spawned(main, nprocs, training, *environment))
        return SimpleNamespace(join=lambda: True)

    monkeypatch.setattr(torch.multiprocessing, "spawn", spawn)
    monkeypatch.setattr(stop_request, "launches", lambda: None)
    cfg = full_settings(*overrides)
    configure_devices(cfg)
    fairseq_distributed._launched(lambda *_: pytest.fail("not spawned"))(cfg, lambda: None)
    return found[0]


@pytest.mark.parametrize(("num_gpus", "overrides"), [(0, [TWO]), (1, [TWO, "common.cpu=true"])])
def test_processes_share_the_cores_of_a_cpu(
    monkeypatch: pytest.MonkeyPatch, num_gpus: int, overrides: list[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: num_gpus > 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    os.environ.pop("OMP_NUM_THREADS", None)
    run = spawned(monkeypatch, *overrides)
    assert run.count == 2
    assert run.training.distributed_backend == "gloo"
    assert run.training.ddp_backend == "legacy_ddp"
    assert run.training.distributed_init_method.startswith("tcp://localhost:")
    assert run.threads == "4"
    assert run.gpus == ""
    assert spawned(monkeypatch, *overrides).threads == "4"  # unchanged if set


def test_given_port_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a port, unpatched fairseq starts no other process and trains on half of the batches."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    run = spawned(monkeypatch, TWO, "distributed_training.distributed_port=29671")
    assert run.training.distributed_init_method == "tcp://localhost:29671"


def test_rank_needs_no_spawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"distributed_rank=1 .*\.distributed_no_spawn=true"):
        spawned(monkeypatch, TWO, "distributed_training.distributed_rank=1")


@pytest.mark.parametrize("tasks", ["1", "2"])
def test_slurm_sets_ranks_on_a_cpu(monkeypatch: pytest.MonkeyPatch, tasks: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(subprocess, "check_output", lambda _: b"host1")
    os.environ.update({**SLURM, "SLURM_NTASKS_PER_NODE": tasks})
    cfg = full_settings(TWO, "distributed_training.distributed_port=1234")
    count = fairseq_distributed._infer_ranks(cfg)
    assert count == (2 if tasks == "1" else 0)
    assert cfg.distributed_training.distributed_world_size == 2
    assert cfg.distributed_training.distributed_init_method == "tcp://host1:1234"
    assert cfg.distributed_training.distributed_rank == (0 if tasks == "1" else 1)


def test_torchrun_sets_ranks_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    os.environ.update({"MASTER_ADDR": "localhost", "MASTER_PORT": "1"})
    os.environ.update({"WORLD_SIZE": "3", "RANK": "2"})
    cfg = full_settings(TWO)
    assert fairseq_distributed._infer_ranks(cfg) == 0
    assert cfg.distributed_training.distributed_world_size == 3
    assert cfg.distributed_training.distributed_rank == 2


def test_torchrun_allows_more_processes_than_local_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for key in ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK"):
        monkeypatch.setenv(key, "2")
    configure_devices(settings(TWO))


@pytest.mark.parametrize("override", ["common.fp16=true"])
def test_command_ends_with_one_line(tmp_path: Path, start: Start, override: str) -> None:
    write_clips(tmp_path, "train", [1.0])
    run = start(tmp_path, *ONLY_TRAINING, override, program=LAUNCHER, HYDRA_FULL_ERROR="0")
    assert run.wait() == 1
    assert "Traceback" not in run.output
    (line,) = [line for line in run.errors.splitlines() if line.startswith("mae-ast: error: ")]
    assert override in line


@pytest.mark.parametrize(("signal_name", "status"), [("SIGUSR1", 0), ("SIGKILL", 1), (None, 1)])
def test_end_of_a_spawned_process_gives_no_traceback(
    monkeypatch: pytest.MonkeyPatch, signal_name: str | None, status: int
) -> None:
    """The launcher exits with one line, or with status 0 after a signal during the start."""

    def ended(*_: Any) -> None:
        raise ProcessExitedException("text", 3, 4, 5, signal_name)

    monkeypatch.setattr(fairseq_distributed, "_spawn", ended)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(stop_request, "launches", lambda: None)
    monkeypatch.setattr(stop_request, "is_requested", lambda: True)
    with pytest.raises(SystemExit) as end:
        fairseq_distributed._launched(lambda *_: None)(full_settings(TWO), lambda: None)
    code = end.value.code
    assert (code == 0) if status == 0 else str(code).startswith("mae-ast: error: process 3 of")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "launches"),
        (dict.fromkeys(("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK"), "2"), None),
        ({**SLURM, "SLURM_NTASKS_PER_NODE": "2"}, None),
        ({**SLURM, "SLURM_NTASKS_PER_NODE": "1"}, "launches"),
    ],
)
def test_only_a_launcher_waits_without_a_time_limit(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: str | None
) -> None:
    """A process started by torchrun or SLURM trains, and may wait for one that has ended."""
    calls = []
    for name in ("launches", "trains_alone"):
        monkeypatch.setattr(stop_request, name, lambda name=name: calls.append(name))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(subprocess, "check_output", lambda _: b"host1")
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(fairseq_distributed, "_spawn", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    fairseq_distributed._launched(lambda *_: None)(full_settings(TWO), lambda: None)
    assert calls == ([] if expected is None else [expected])


def test_spawned_processes_are_patched(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are patched even if the launcher does not import this package."""
    plugin.register()
    assert hasattr(utils.distributed_main, "__wrapped__")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    run = spawned(monkeypatch, TWO).run
    assert run is fairseq_distributed.spawned_rank
    assert pickle.loads(pickle.dumps(run)) is run


def test_data_workers_of_a_spawned_process_are_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spawned workers would import PyTorch and fairseq in each epoch."""
    default = multiprocessing.get_start_method()
    monkeypatch.setattr(multiprocessing, "parent_process", multiprocessing.current_process)
    found = []
    multiprocessing.set_start_method("spawn", force=True)
    try:
        fairseq_distributed._joined(lambda: found.append(multiprocessing.get_start_method()))()
    finally:
        multiprocessing.set_start_method(None, force=True)
    assert found == [default]


def test_tensorboard_writers_are_closed_before_the_process_exits(tmp_path: Path) -> None:
    """Otherwise a spawned process, whose pipes are closed first, ends with tracebacks."""
    writers = []

    def ends(*_: Any) -> None:
        writers.append(SummaryWriter(str(tmp_path)))
        writers[0].add_scalar("loss", 1.0, 1)
        raise SystemExit("mae-ast: error: text")

    with pytest.raises(SystemExit, match="text"):
        fairseq_distributed._joined(ends)()
    assert writers[0].all_writers is None


def test_end_of_another_process_is_reported_in_one_line() -> None:
    def loses_its_peer() -> None:
        raise RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer\nmore")

    with pytest.raises(SystemExit) as end:
        fairseq_distributed._joined(loses_its_peer)()
    assert str(end.value.code).startswith("mae-ast: error: another process of this run ended")
    assert "\n" not in str(end.value.code)


def test_other_errors_are_unchanged() -> None:
    def fails() -> None:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        fairseq_distributed._joined(fails)()
