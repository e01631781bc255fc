"""``mae-ast finetune``: the training process that it starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from mae_ast.cli import finetune
from mae_ast.trainer.command import config_dir, train_command


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``started(arguments) -> command line``, without starting it."""
    app = typer.Typer()
    app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(
        finetune.finetune
    )
    seen: list[list[str]] = []
    monkeypatch.setattr("os.execv", lambda program, command: seen.append(command))

    def run(*arguments: str) -> list[str]:
        done = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return seen[-1]

    return run


def test_presets_of_all_recipes_exist() -> None:
    found = {path.stem for path in (config_dir() / "finetune").glob("*.yaml")}
    assert found >= {
        *("demo", "esc50", "speechcommands1", "speechcommands2"),
        *("audioset_balanced", "audioset", "voxceleb1"),
    }


def test_checkpoint_and_settings_reach_the_training(
    started: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my model.pt").touch()
    command = started("my model.pt", "data", "--config", "esc50", "--out", "run", "task.mixup=0.2")
    assert command[command.index("--config-name") + 1] == "esc50"
    assert f"model.checkpoint='{tmp_path}/my model.pt'" in command
    assert f"task.data='{tmp_path}/data'" in command
    assert f"hydra.run.dir='{tmp_path}/run'" in command
    assert command[-1] == "task.mixup=0.2"
    command = started("my model.pt", "data", "--config", "esc50", "--random-weights")
    assert f"model.architecture_of='{tmp_path}/my model.pt'" in command
    assert [each for each in command if each.startswith("model.checkpoint")] == [
        "model.checkpoint=null"  # where a preset names a start of its own
    ]


def test_names_of_models_are_not_made_paths(tmp_path: Path) -> None:
    for name in ("chunk-patch-75", "someone/a-model", "https://example.org/a,b.pt"):
        command = train_command(
            tmp_path, "demo", tmp_path, [f"model.checkpoint={name}"], "finetune"
        )
        assert command[-1] == f"model.checkpoint='{name}'"


def test_unknown_preset_names_those_for_fine_tuning(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"huge.*audioset.*esc50"):
        train_command(tmp_path, "huge", tmp_path, [], "finetune")
