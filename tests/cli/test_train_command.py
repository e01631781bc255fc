"""``mae-ast pretrain``: the training process that it starts."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mae_ast.cli.options import split_data
from mae_ast.trainer import resume_guard
from mae_ast.trainer.command import (
    PACKAGE,
    config_dir,
    module_command,
    run_identity,
    train_command,
)
from tests.trainer.forked import run_forked

pytestmark = pytest.mark.slow


def test_presets_exist():
    assert {path.stem for path in (config_dir() / "pretrain").glob("*.yaml")} >= {"mae_ast", "demo"}


def test_paths_are_absolute_and_other_overrides_untouched(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = train_command(
        Path("my data"),
        "mae_ast",
        Path("out"),
        ["checkpoint.save_dir=saved", "model.encoder_layers=3", "checkpoint.restore_file=null"],
    )
    assert f"task.data='{tmp_path}/my data'" in command
    assert f"hydra.run.dir='{tmp_path}/out'" in command
    assert f"checkpoint.save_dir='{tmp_path}/saved'" in command
    assert command[-2:] == ["model.encoder_layers=3", "checkpoint.restore_file=null"]


def test_several_data_folders_are_a_list(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = [Path("a"), Path("b, c")]
    command = train_command(folders, "mae_ast", Path("out"), ["task.data=[a,b]"])
    assert f"task.data=['{tmp_path}/a','{tmp_path}/b, c']" in command
    assert command[-1] == "task.data=[a,b]"  # the task makes these absolute
    assert run_identity(folders, "demo")["data"] == [f"{tmp_path}/a", f"{tmp_path}/b, c"]
    assert run_identity(Path("a"), "demo") == run_identity([Path("a")], "demo")
    assert run_identity(Path("a"), "demo")["data"] == f"{tmp_path}/a"


@pytest.mark.parametrize(
    ("arguments", "folders", "settings"),
    [
        ([], ["a"], []),
        (
            ["b", "~/c", "task.mixture=[1,2,3]", "d"],
            ["a", "b", "~/c"],
            ["task.mixture=[1,2,3]", "d"],
        ),
        (["b", "--cfg", "job"], ["a", "b"], ["--cfg", "job"]),
        (["+run_config=local", "b"], ["a"], ["+run_config=local", "b"]),
        (["~task.seed"], ["a"], ["~task.seed"]),
    ],
)
def test_data_folders_come_before_the_settings(arguments, folders, settings):
    assert split_data(Path("a"), arguments) == ([Path(each) for each in folders], settings)


def test_paths_of_models_are_absolute_and_names_unchanged(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "vit.pth").touch()
    keys = ("model.encoder_weights", "model.checkpoint", "checkpoint.finetune_from_model")
    for given in ("vit.pth", "~/vit.pth"):
        overrides = [f"{key}={given}" for key in keys]
        command = train_command(tmp_path, "mae_ast", tmp_path, overrides)
        assert command[-3:] == [f"{key}='{tmp_path}/vit.pth'" for key in keys]
    named = ["model.encoder_weights=timm:vit_base_patch16_224", "model.checkpoint=mae_ast_patch"]
    command = train_command(tmp_path, "mae_ast", tmp_path, named)
    assert command[-2:] == [
        "model.encoder_weights='timm:vit_base_patch16_224'",
        "model.checkpoint='mae_ast_patch'",
    ]


def test_own_yaml_file(tmp_path):
    preset = tmp_path / "mine.yaml"
    preset.write_text("common: {}\n")
    command = train_command(tmp_path, str(preset), tmp_path, [])
    assert command[command.index("--config-dir") + 1] == str(tmp_path)
    assert command[command.index("--config-name") + 1] == "mine"


def test_unknown_preset_names_the_known(tmp_path):
    with pytest.raises(ValueError, match=r"huge.*demo.*mae_ast"):
        train_command(tmp_path, "huge", tmp_path, [])


def test_overrides_reach_the_training_process(tmp_path):
    folder = tmp_path / "with space, comma (and) more"
    folder.mkdir()
    command = train_command(folder, "demo", folder / "run", ["model.encoder_layers=3"])
    done = run_forked([*command, "--cfg", "job"])
    assert done.returncode == 0, done.stderr
    settings = yaml.safe_load(done.stdout)
    assert settings["task"]["data"] == str(folder)
    assert settings["model"]["encoder_layers"] == 3
    assert command[0] == sys.executable


SPAWN = """
import multiprocessing, runpy, sys

def report(where):
    import mae_ast, numpy
    print(where, mae_ast.__file__, numpy.__name__, flush=True)

if __name__ == "__main__":
    report("parent")
    for method in ("fork", "spawn"):
        child = multiprocessing.get_context(method).Process(target=report, args=(method,))
        child.start()
        child.join()
        assert child.exitcode == 0
"""


def test_the_working_folder_does_not_shadow_imports(tmp_path, monkeypatch):
    """Such as in a checkout while the package is installed elsewhere."""
    for name in ("mae_ast", "fairseq", "hydra", "numpy", "torch", "multiprocessing"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"raise SystemExit('{name} of the folder')")
    monkeypatch.chdir(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}

    def run(command):
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    command = train_command(tmp_path, "demo", tmp_path / "run", [])
    assert f"user_dir: {PACKAGE}" in run([*command, "--cfg", "job"])
    # Processes of multiprocessing, too.
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "program.py").write_text(SPAWN)
    environment["PYTHONPATH"] += f"{os.pathsep}{modules}"
    lines = run(module_command("program")).splitlines()
    assert lines == [
        f"{where} {PACKAGE / '__init__.py'} numpy" for where in ("parent", "fork", "spawn")
    ]


def test_a_linked_package_is_its_own_user_dir(tmp_path):
    """fairseq compares the user-dir's path with the one that the package was imported by."""
    link = tmp_path / "link"
    link.symlink_to(PACKAGE.parent, target_is_directory=True)
    program = (
        "from argparse import Namespace\n"
        "from fairseq.utils import import_user_module\n"
        "from mae_ast.trainer.command import PACKAGE\n"
        "import_user_module(Namespace(user_dir=str(PACKAGE)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(link)},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def test_a_checkout_needs_no_installation(monkeypatch):
    monkeypatch.chdir(PACKAGE.parent)
    assert module_command("mae_ast.launch") == [sys.executable, "-m", "mae_ast.launch"]


@pytest.fixture
def started(mae_ast_command, monkeypatch, tmp_path):
    """Return a function that runs a command and returns its error; a training saves at once."""

    def save(program, command):
        resume_guard.check_or_record({})  # as the process does that trains, once it can start
        last = tmp_path / "run" / "checkpoints" / "checkpoint_last.pt"
        last.parent.mkdir(parents=True, exist_ok=True)
        last.touch()
        raise SystemExit(0)

    monkeypatch.setattr(os, "execv", save)
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: mae_ast_command(*arguments, "--out", "run")[1]


def test_pretraining_resumes_only_with_the_same_data_and_preset(started, tmp_path):
    assert not started("pretrain", "data", "optimization.max_update=9")
    assert not started("pretrain", tmp_path / "data", "optimization.max_update=10")
    known = json.loads((tmp_path / "run" / "begun_with.json").read_text())
    assert known == {"data": str(tmp_path / "data"), "config": "mae_ast"}
    message = started("pretrain", "more")
    assert "run: " in message
    assert f"data '{tmp_path}/data', not '{tmp_path}/more'" in message
    assert "give another --out" in message
    assert "config 'mae_ast', not 'ssast_patch'" in started(
        "pretrain", "data", "--config", "ssast_patch"
    )
    (tmp_path / "run" / "begun_with.json").unlink()  # as of another program
    assert not started("pretrain", "more")


def test_fine_tuning_resumes_only_with_the_same_settings(started, tmp_path):
    (tmp_path / "a.pt").touch()
    preset = ("--config", "demo")
    assert not started("finetune", "a.pt", "fold1", *preset)
    assert not started("finetune", tmp_path / "a.pt", "fold1", *preset, "optimization.lr=[0.1]")
    for arguments, key in (
        (("b.pt", "fold1", *preset), "checkpoint"),
        (("a.pt", "fold2", *preset), "data"),
        (("a.pt", "fold1", *preset, "--random-weights"), "random_weights"),
        (("a.pt", "fold1", "--config", "esc50"), "config"),
    ):
        assert re.search(rf"run: .* {key} .*, not ", started("finetune", *arguments))


def test_a_run_without_checkpoints_may_restart_with_other_settings(started, tmp_path):
    assert not started("pretrain", "data")
    (tmp_path / "run" / "checkpoints" / "checkpoint_last.pt").unlink()
    assert not started("pretrain", "more")


def test_a_damaged_note_is_named(started, tmp_path):
    assert not started("pretrain", "data")
    (tmp_path / "run" / "begun_with.json").write_text("{")
    message = started("pretrain", "data")
    assert "begun_with.json: " in message
    assert "--out" in message


def test_a_run_that_does_not_start_leaves_no_note(mae_ast_command, monkeypatch, tmp_path):
    monkeypatch.setattr(os, "execv", lambda program, command: None)
    monkeypatch.setenv("MAE_AST_RUN_NOTE", "")  # restored afterwards
    assert mae_ast_command("pretrain", tmp_path, "--out", tmp_path / "run")[1] == ""
    assert not (tmp_path / "run").exists()
