"""Invalid input ends the program in one line, a bug in a traceback."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from mae_ast.console import is_for_user, user_errors
from mae_ast.core.io.labels import Labels
from mae_ast.core.io.manifest import Manifest
from mae_ast.core.models.mae_ast import MaeAst
from mae_ast.trainer.run_report import duration

from .conftest import LAUNCHER, ONLY_TRAINING, Start, Training, write_clips
from .ranks import TWO, start_ranks

Train = Callable[..., list[dict[str, str]]]


@pytest.fixture(scope="module")
def four_clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("four")
    write_clips(folder, "train", [1.0, 1.1, 1.2, 1.3])
    write_clips(folder, "valid", [1.0])
    return folder


# --- which errors -------------------------------------------------------------------------------


def read_manifest() -> object:
    return Manifest.read("/no/such/file.tsv")


def read_labels(folder: Path = Path("/no/such")) -> object:
    return Labels.read(folder / "labels.csv")


def open_missing_file() -> object:
    return Path("/no/such/file").open()


def broadcast() -> object:
    return np.zeros(2) + np.zeros(3)


def parse() -> object:
    return json.loads("{")


def compare_array() -> object:
    """Fail in this package, but in an operation instead of a ``raise`` statement."""
    return duration(np.zeros(2))  # type: ignore[arg-type]


def optimize_nothing() -> object:
    return torch.optim.SGD([])


@pytest.mark.parametrize("fails", [read_manifest, read_labels, open_missing_file])
def test_error_of_the_input_is_one_line(fails: Callable[[], object]) -> None:
    with pytest.raises(SystemExit) as end, user_errors():
        fails()
    message = str(end.value.code)
    assert message.startswith("mae-ast: error: /no/such")
    assert "\n" not in message


@pytest.mark.parametrize("fails", [broadcast, parse, compare_array, optimize_nothing])
def test_bug_keeps_its_traceback(fails: Callable[[], object]) -> None:
    with pytest.raises(ValueError) as error, user_errors():  # noqa: PT011  # any message
        fails()
    assert not is_for_user(error.value)


# --- in training --------------------------------------------------------------------------------


def test_error_of_a_library_in_a_step_keeps_its_traceback(
    train_here: Train, four_clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MaeAst, "forward", lambda *_, **__: broadcast())
    with pytest.raises(ValueError, match="broadcast"):
        train_here(four_clips, *ONLY_TRAINING, "dataset.num_workers=0")


@pytest.mark.parametrize("preset", ["mae_ast", "audio_mae"])
@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optimizer.weight_decay=-1", "optimizer.weight_decay=-1.0: must be 0 or more"),
        ("optimizer.adam_betas=[2,3]", "optimizer.adam_betas=[2, 3]: must be two numbers from 0"),
    ],
)
def test_settings_of_the_optimizer_are_checked(
    train_here: Train, four_clips: Path, preset: str, override: str, words: str
) -> None:
    run = (*ONLY_TRAINING, "dataset.num_workers=0", "optimization.max_update=1", override)
    with pytest.raises(SystemExit) as end:
        train_here(four_clips, *run, config=preset)
    assert str(end.value.code).startswith(f"mae-ast: error: {words}")


def test_fairseq_names_settings_that_exclude_one_another(
    train_here: Train, four_clips: Path, pretrained: Path
) -> None:
    weights = f"checkpoint.finetune_from_model={pretrained}"
    resets = "checkpoint.reset_optimizer=true"
    with pytest.raises(SystemExit, match=r"^mae-ast: error: .*reset-optimizer"):
        train_here(four_clips, *ONLY_TRAINING, "dataset.num_workers=0", weights, resets)


# --- programs -----------------------------------------------------------------------------------

INVALID = {
    "model": ("model.encoder_attention_heads=5", "encoder_attention_heads=5"),
    "criterion": ("criterion.classification_weight=-1", "classification_weight=-1"),
}


def error_lines(run: Training) -> list[str]:
    assert run.wait() == 1
    assert "Traceback" not in run.output
    assert "Error executing job" not in run.output
    return [line for line in run.errors.splitlines() if line.startswith("mae-ast: error: ")]


@pytest.fixture(scope="module")
def programs(four_clips: Path, start_for_all: Start) -> dict[str, list[Training]]:
    """Start all programs at once: fairseq's, two ranks of it, and a launcher that spawns two."""
    run = (*ONLY_TRAINING, "dataset.num_workers=0")
    (model, _), (criterion, _) = INVALID.values()
    stock = start_for_all(four_clips, *run, model, out="stock", HYDRA_FULL_ERROR="0")
    full = start_for_all(four_clips, *run, criterion, out="full", HYDRA_FULL_ERROR="1")
    program = (str(Path(LAUNCHER[0]).with_name("fairseq-hydra-train")),)
    ranks = start_ranks(start_for_all, four_clips, *run, model, out="ranks", program=program)
    spawning = start_for_all(four_clips, *run, TWO, criterion, out="spawning", program=LAUNCHER)
    return {"stock": [stock], "full": [full], "ranks": ranks, "spawning": [spawning]}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), [("stock", "model"), ("full", "criterion")])
def test_program_of_fairseq_shows_one_line(
    programs: dict[str, list[Training]], name: str, kind: str
) -> None:
    (line,) = error_lines(programs[name][0])
    assert INVALID[kind][1] in line


@pytest.mark.slow
def test_each_of_two_ranks_shows_one_line(programs: dict[str, list[Training]]) -> None:
    for run in programs["ranks"]:
        (line,) = error_lines(run)
        assert INVALID["model"][1] in line


@pytest.mark.slow
def test_launcher_of_two_processes_shows_one_line(programs: dict[str, list[Training]]) -> None:
    (line,) = error_lines(programs["spawning"][0])  # before it spawns them
    assert INVALID["criterion"][1] in line
