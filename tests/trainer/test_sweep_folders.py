"""Command lines for hydra: options in any position, and the folders of a sweep's jobs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mae_ast.cli.main import app
from mae_ast.finetune import crossvalidation
from mae_ast.trainer import resume_guard, sweep
from mae_ast.trainer.command import train_command

SLURM = (
    "pretrain manifests --out runs/patch +run_config=slurm_4 hydra/launcher=submitit_slurm "
    "--multirun hydra.launcher.partition=NAME"
)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """Collect the command lines of trainings instead of running them."""
    started: list[list[str]] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.setattr(os, "execv", lambda _, command: started.append(command))
    return started


def arguments(command: list[str]) -> list[str]:
    """Return the overrides as hydra parses them."""
    return command[command.index("mae_ast.launch") + 1 :]


def parsed(command: list[str]):
    from hydra._internal.utils import get_args_parser

    return get_args_parser().parse_args(arguments(command))


@pytest.mark.parametrize(
    "given",
    [
        ["manifests", "--out", "runs", "a=1", "--multirun", "b=2,3"],
        ["--multirun", "manifests", "--out", "runs", "a=1", "b=2,3"],
        ["manifests", "a=1", "b=2,3", "-m", "--out", "runs"],
        ["manifests", "--out", "runs", "a=1", "hydra.mode=MULTIRUN", "b=2,3"],
    ],
)
def test_multirun_is_accepted_in_any_position(
    started: list[list[str]], tmp_path: Path, given: list[str]
) -> None:
    result = CliRunner().invoke(app, ["pretrain", *given])
    assert result.exit_code == 0, result.output
    (command,) = started
    found = parsed(command)
    assert found.multirun or "hydra.mode=MULTIRUN" in found.overrides
    assert [each for each in found.overrides if each[:2] in ("a=", "b=")] == ["a=1", "b=2,3"]
    assert f"hydra.sweep.dir='{tmp_path / 'runs'}'" in found.overrides
    assert "hydra.sweep.subdir=${hydra.job.num}" in found.overrides


def test_single_job_uses_the_folder_of_the_command(
    started: list[list[str]], tmp_path: Path
) -> None:
    """Use the command of docs/clusters.md, where srun is installed."""
    srun = tmp_path / "bin" / "srun"
    srun.parent.mkdir()
    srun.touch(mode=0o755)
    os.environ["PATH"] = f"{srun.parent}:{os.environ['PATH']}"
    assert CliRunner().invoke(app, SLURM.split()).exit_code == 0
    found = parsed(started[0])
    assert found.multirun
    assert f"hydra.sweep.dir='{tmp_path / 'runs/patch'}'" in found.overrides
    assert "hydra.sweep.subdir='.'" in found.overrides
    assert "hydra.launcher.partition=NAME" in found.overrides


def test_slurm_without_srun_is_refused_before_anything_is_created(
    started: list[list[str]], tmp_path: Path
) -> None:
    os.environ["PATH"] = str(tmp_path)
    result = CliRunner().invoke(app, SLURM.split())
    assert "hydra/launcher=submitit_slurm: srun is not on the PATH" in str(result.exception)
    assert not started
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("line", ["--cfg job", "--info", "--info defaults", "-p model --cfg job"])
def test_other_options_of_hydra_are_accepted_between_overrides(line: str, tmp_path: Path) -> None:
    command = train_command(
        tmp_path, "mae_ast", tmp_path, ["a=1", *line.split(), "~b", "+c=2"], "pretrain"
    )
    found = parsed(command)
    assert found.overrides[-3:] == ["a=1", "~b", "+c=2"]
    assert found.config_name == "mae_ast"
    assert not any("hydra.sweep" in each for each in found.overrides)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["a=1"], "'.'"),
        (["a=[1,2]"], "'.'"),
        (["a='1,2'"], "'.'"),
        (["a=1,2"], "${hydra.job.num}"),
        (["a=range(1,3)"], "${hydra.job.num}"),
        (["hydra/sweeper=optuna"], "${hydra.job.num}"),
    ],
)
def test_several_jobs_have_numbered_folders(overrides: list[str], expected: str) -> None:
    assert sweep.subdir(overrides) == expected


def test_paths_of_a_sweep_are_made_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.pt").touch()
    given = ["--multirun", "checkpoint.finetune_from_model=a.pt,mae_ast_patch", "task.data=x,y z"]
    *_, weights, data = train_command(tmp_path, "mae_ast", tmp_path, given)
    assert weights == f"checkpoint.finetune_from_model='{tmp_path}/a.pt','mae_ast_patch'"
    assert data == f"task.data='{tmp_path}/x','{tmp_path}/y z'"
    *_, alone = train_command(tmp_path, "mae_ast", tmp_path, ["checkpoint.save_dir=x,y"])
    assert alone == f"checkpoint.save_dir='{tmp_path}/x,y'"


def test_sweep_resumes_only_with_the_same_values(started: list[list[str]], tmp_path: Path) -> None:
    """The values number its jobs."""
    line = ["pretrain", "manifests", "--out", "runs", "-m", "optimization.max_update=9"]
    assert CliRunner().invoke(app, [*line, "model.encoder_layers=1,2"]).exit_code == 0
    resume_guard.check_or_record({})  # as in the program that replaces the command
    note = json.loads((tmp_path / "runs" / "begun_with.json").read_text())
    assert note["sweep"] == ["model.encoder_layers=1,2"]
    checkpoint = tmp_path / "runs" / "1" / "checkpoints" / "checkpoint_last.pt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    line[-1] = "optimization.max_update=99"
    assert CliRunner().invoke(app, [*line, "model.encoder_layers=1,2"]).exit_code == 0
    result = CliRunner().invoke(app, [*line, "model.encoder_layers=2,1"])
    message = str(result.exception)
    assert "runs: " in message
    assert "sweep ['model.encoder_layers=1,2'], not ['model.encoder_layers=2,1']" in message
    assert len(started) == 2


def test_cross_validation_refuses_multirun() -> None:
    with pytest.raises(ValueError, match="--multirun is not supported"):
        crossvalidation.check_overrides(["--multirun"])
