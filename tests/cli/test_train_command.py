"""``mae-ast pretrain``: what it starts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mae_ast.train_command import config_dir, train_command


def test_presets_are_found():
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


def test_own_yaml_file(tmp_path):
    preset = tmp_path / "mine.yaml"
    preset.write_text("common: {}\n")
    command = train_command(tmp_path, str(preset), tmp_path, [])
    assert command[command.index("--config-dir") + 1] == str(tmp_path)
    assert command[command.index("--config-name") + 1] == "mine"


def test_unknown_preset_names_the_known(tmp_path):
    with pytest.raises(ValueError, match=r"huge.*demo.*mae_ast"):
        train_command(tmp_path, "huge", tmp_path, [])


def test_what_the_command_starts_knows_the_settings(tmp_path):
    folder = tmp_path / "with space, comma (and) more"
    folder.mkdir()
    command = train_command(folder, "demo", folder / "run", ["model.encoder_layers=3"])
    done = subprocess.run(
        [*command, "--cfg", "job"],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "HYDRA_FULL_ERROR": "1"},
    )
    assert done.returncode == 0, done.stderr
    settings = yaml.safe_load(done.stdout)
    assert settings["task"]["data"] == str(folder)
    assert settings["model"]["encoder_layers"] == 3
    assert command[0] == sys.executable
