"""Settings that this machine's devices do not support are refused in one line."""

from __future__ import annotations

import pickle
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq.dataclass.configs import DistributedTrainingConfig
from fairseq.distributed import utils
from omegaconf import OmegaConf
from tensorboardX import SummaryWriter
from torch.multiprocessing.spawn import ProcessExitedException

from mae_ast import fairseq_distributed, plugin, stop_request
from mae_ast.fairseq_distributed import check_devices

from .conftest import LAUNCHER, ONLY_TRAINING, Start, write_clips
from .ranks import rank_overrides


def settings(*overrides: str) -> Any:
    defaults = {
        "common": {"cpu": False, "fp16": False, "tpu": False},
        "distributed_training": {
            "distributed_world_size": 1,
            "distributed_init_method": None,
            "distributed_no_spawn": False,
            "distributed_backend": "nccl",
            "ddp_backend": "pytorch_ddp",
        },
    }
    return OmegaConf.merge(defaults, OmegaConf.from_dotlist(list(overrides)))


SLURM = {
    "SLURM_JOB_NODELIST": "host1",
    **{"SLURM_NNODES": "1", "SLURM_NODEID": "0", "SLURM_PROCID": "1", "SLURM_LOCALID": "1"},
}
TWO = "distributed_training.distributed_world_size=2"
ON_CPU = tuple(each for each in rank_overrides(0, 1234) if "rank=" not in each)


@pytest.mark.parametrize(
    ("num_gpus", "overrides", "words"),
    [
        (0, ["common.fp16=true"], ["common.fp16=true needs a GPU", "none here"]),
        (1, ["common.fp16=true", "common.cpu=true"], ["common.fp16=true", "common.cpu=true"]),
        (0, [TWO], [f"{TWO} needs as many GPUs", "ddp_backend=legacy_ddp"]),
        # fairseq would start no process at all, and report success.
        (0, [TWO, "distributed_training.distributed_init_method=tcp://host:1"], [TWO, "no_spawn"]),
        (
            2,
            [*ON_CPU, "common.cpu=true", "distributed_training.distributed_backend=nccl"],
            ["gloo"],
        ),
        (0, [*ON_CPU, "distributed_training.ddp_backend=pytorch_ddp"], ["legacy_ddp"]),
        (1, [TWO], [f"{TWO}, but this machine has 1 GPUs", "torchrun or SLURM"]),
    ],
)
def test_settings_that_cannot_work(
    monkeypatch: pytest.MonkeyPatch, num_gpus: int, overrides: list[str], words: list[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: num_gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    with pytest.raises(SystemExit) as refusal:
        check_devices(settings(*overrides))
    message = str(refusal.value.code)
    assert message.startswith("mae-ast: error: ")
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("num_gpus", "overrides"),
    [
        (0, []),
        (0, ["common.cpu=true"]),
        (0, ON_CPU),
        (1, [*ON_CPU, "common.cpu=true"]),
        (1, ["common.fp16=true"]),
        (2, [TWO, "common.fp16=true"]),
        (1, [TWO, "distributed_training.distributed_init_method=tcp://host:1"]),
    ],
)
def test_settings_that_work(
    monkeypatch: pytest.MonkeyPatch, num_gpus: int, overrides: list[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: num_gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    check_devices(settings(*overrides))


def test_torchrun_says_where_the_other_processes_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for key in ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK"):
        monkeypatch.setenv(key, "2")
    check_devices(settings(TWO))


@pytest.mark.parametrize("override", ["common.fp16=true", TWO])
def test_the_command_ends_with_one_line(tmp_path: Path, start: Start, override: str) -> None:
    write_clips(tmp_path, "train", [1.0])
    run = start(tmp_path, *ONLY_TRAINING, override, program=LAUNCHER, HYDRA_FULL_ERROR="0")
    assert run.wait() == 1
    assert "Traceback" not in run.output
    (line,) = [line for line in run.errors.splitlines() if line.startswith("mae-ast: error: ")]
    assert override in line


@pytest.mark.parametrize(("signal_name", "status"), [("SIGUSR1", 0), ("SIGKILL", 1), (None, 1)])
def test_a_process_that_was_spawned_ends_its_launcher_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, signal_name: str | None, status: int
) -> None:
    """It has said why; on a signal while it was starting, the launcher ends in peace."""

    def ended(cfg: Any, main: Any) -> None:
        raise ProcessExitedException("text", 3, 4, 5, signal_name)

    told = "distributed_training.distributed_init_method=tcp://host:1"
    monkeypatch.setattr(stop_request, "is_requested", lambda: True)
    with pytest.raises(SystemExit) as end:
        fairseq_distributed._launched(ended)(settings(TWO, told), lambda: None)
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
def test_only_a_process_that_spawns_others_waits_for_them_without_a_limit(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: str | None
) -> None:
    """One that torchrun or SLURM started trains itself, and may wait for one that is gone."""
    said = []
    for name in ("launches", "trains_alone"):
        monkeypatch.setattr(stop_request, name, lambda name=name: said.append(name))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(subprocess, "check_output", lambda _: b"host1")
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    cfg = settings(TWO)
    cfg.distributed_training = OmegaConf.merge(
        OmegaConf.structured(DistributedTrainingConfig), cfg.distributed_training
    )
    fairseq_distributed._launched(lambda *_: None)(cfg, lambda: None)
    assert said == ([] if expected is None else [expected])


def test_processes_that_are_spawned_import_the_patch_by_its_name() -> None:
    plugin.register()
    assert hasattr(utils.distributed_main, "__wrapped__")
    assert pickle.loads(pickle.dumps(utils.distributed_main)) is utils.distributed_main


def test_a_process_closes_its_tensorboard_writers_before_it_exits(tmp_path: Path) -> None:
    """Else a spawned one, whose pipes are closed first, ends with tracebacks."""
    writers = []

    def ends(*_: Any) -> None:
        writers.append(SummaryWriter(str(tmp_path)))
        writers[0].add_scalar("loss", 1.0, 1)
        raise SystemExit("mae-ast: error: text")

    with pytest.raises(SystemExit, match="text"):
        fairseq_distributed._joined(ends)()
    assert writers[0].all_writers is None


def test_the_end_of_another_process_is_told_in_one_line() -> None:
    def loses_its_peer() -> None:
        raise RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer\nmore")

    with pytest.raises(SystemExit) as end:
        fairseq_distributed._joined(loses_its_peer)()
    assert str(end.value.code).startswith("mae-ast: error: another process of this run ended")
    assert "\n" not in str(end.value.code)


def test_other_errors_stay_as_they_are() -> None:
    def fails() -> None:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        fairseq_distributed._joined(fails)()
