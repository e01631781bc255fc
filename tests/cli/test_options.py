"""Options that several commands have: presets, splits, defaults."""

from __future__ import annotations

import inspect
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from mae_ast.cli import bench, manifest, pack, prepare
from mae_ast.cli.main import COMMANDS
from mae_ast.core.io.manifest import PROBE_THREADS
from mae_ast.finetune.crossvalidation import FILES_OF_A_FOLD
from mae_ast.prepare.pack import JOBS
from mae_ast.trainer.command import find_preset, preset_names

Command = Callable[..., tuple[str, str]]


@pytest.fixture
def folds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of two folds; nothing can be started."""
    monkeypatch.setattr(os, "execv", None)
    for fold in ("fold1", "fold2"):
        (tmp_path / "data" / fold).mkdir(parents=True)
        for name in FILES_OF_A_FOLD:
            (tmp_path / "data" / fold / name).touch()
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("arguments", "preset", "purposes", "known"),
    [
        (("finetune", "a.pt"), "mae_ast", ("pretraining", "fine-tuning"), "finetune"),
        (("crossvalidate", "a.pt"), "mae_ast", ("pretraining", "fine-tuning"), "finetune"),
        (("pretrain",), "esc50", ("fine-tuning", "pretraining"), "pretrain"),
        (("plan",), "ast_esc50", ("fine-tuning", "pretraining"), "pretrain"),
    ],
)
def test_a_preset_of_the_other_kind_is_named(
    mae_ast_command: Command,
    folds: Path,
    arguments: tuple[str, ...],
    preset: str,
    purposes: tuple[str, str],
    known: str,
) -> None:
    _, message = mae_ast_command(*arguments, folds, "--config", preset)
    given, wanted = purposes
    assert f"--config {preset}: is a preset for {given}" in message
    assert f"for {wanted} are {', '.join(preset_names(known))}" in message


def test_a_preset_is_found_by_name_or_path(tmp_path: Path) -> None:
    assert find_preset("demo", "finetune").parts[-2:] == ("finetune", "demo.yaml")
    assert find_preset("demo", "pretrain").parts[-2:] == ("pretrain", "demo.yaml")
    own = tmp_path / "mae_ast.yaml"
    own.touch()
    assert find_preset(str(own), "finetune") == own


def test_the_splits_of_a_folder_are_listed(mae_ast_command: Command, tmp_path: Path) -> None:
    for name in ("train.tsv", "train.lbl", "test.tsv", "test.lbl", "valid.tsv", "labels.csv"):
        (tmp_path / name).touch()

    def message(*arguments: object) -> str:
        return mae_ast_command("evaluate", "none.pt", *arguments)[1]

    said = message(tmp_path, "--split", "tset")
    assert said.startswith(f"mae-ast: error: --split tset: {tmp_path} has no tset.tsv and no tset.")
    assert said.endswith(": test, train")
    said = message(tmp_path)
    assert "--split valid" in said
    assert "no valid.lbl" in said
    assert f"{tmp_path / 'no'}: no such folder" in message(tmp_path / "no")
    assert "none.pt" in message(tmp_path, "--split", "test")


def test_default_jobs_are_those_of_the_library() -> None:
    def jobs(command: Callable[..., Any]) -> Any:
        return inspect.signature(command).parameters["jobs"].default

    prepared = {jobs(command) for command in itertools.chain(*prepare.COMMANDS.values())}
    assert {jobs(manifest.manifest)} == prepared == {PROBE_THREADS}
    assert jobs(pack.pack) == JOBS


@pytest.mark.parametrize(
    "arguments",
    [["mae-ast", "bench"], ["mae_ast/__main__.py", "bench"], ["mae_ast/bench/__main__.py"]],
)
def test_bench_records_its_command_line(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setattr("sys.argv", [*arguments, "--parts", "masks"])
    assert bench._command() == ["mae-ast", "bench", "--parts", "masks"]


# Options of one name that are about different things in each command, or have a default there.
OF_THEIR_COMMAND = {"checkpoint", "config", "data", "device", "manifest", "out", "overrides"} | {
    *("precision", "seed", "source", "test", "to", "verify", "window"),
    *("folder", "group", "min_seconds", "valid"),
}


def test_an_option_of_several_commands_is_declared_once() -> None:
    """It has the same names, help and limits in all of them."""
    declared: dict[str, set[tuple[object, ...]]] = {}
    for command in itertools.chain(*COMMANDS.values(), *prepare.COMMANDS.values()):
        for name, kind in get_type_hints(command, include_extras=True).items():
            for option in getattr(kind, "__metadata__", ()):
                text = (option.help, option.param_decls, option.metavar, option.min, option.max)
                declared.setdefault(name, set()).add(text)
    assert {name for name, texts in declared.items() if len(texts) > 1} == OF_THEIR_COMMAND
