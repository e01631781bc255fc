"""A run is not resumed with different input statistics, data, labels or initial weights."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import mae_ast
from mae_ast.core.io.settings_note import list_content
from mae_ast.trainer import resume_guard
from mae_ast.trainer.command import NOTE, Data, train_command

from .classification import finetune_here, write_corpus, write_pretrained
from .conftest import SMALL_DECODER, SMALL_ENCODER, SMALL_RUN, Training, write_clips
from .test_ctrl_c import PROGRAM

Train = Callable[..., list[dict[str, str]]]
RUN = ("dataset.num_workers=0", "dataset.disable_validation=true")
FIXED = ("model.input_stats=fixed", "model.input_mean=-6", "model.input_std=4")


@pytest.fixture(scope="module")
def few_clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("few")
    write_clips(folder, "train", [1.0, 1.1, 1.2])
    return folder


@pytest.mark.parametrize(
    ("key", "before", "now"),
    [
        ("input_mean", "-6.0", "-5.5"),
        ("input_std", "4.0", "3.0"),
        ("input_stats", "fixed", "batch"),
    ],
)
def test_different_input_statistics_are_refused(
    train_here: Train, few_clips: Path, tmp_path: Path, key: str, before: str, now: str
) -> None:
    assert len(train_here(few_clips, *RUN, *FIXED, "optimization.max_update=1")) == 1
    last = tmp_path / "checkpoints" / "checkpoint_last.pt"
    saved = last.read_bytes()
    more = (*RUN, *FIXED, "optimization.max_update=2")
    other = f"model.{key}={now}"
    with pytest.raises(SystemExit) as refusal:
        train_here(few_clips, *more, other)
    message = str(refusal.value.code)
    assert message.startswith("mae-ast: error: ")
    assert "\n" not in message
    before, now = (f"'{each}'" if key == "input_stats" else each for each in (before, now))
    words = f"checkpoint_last.pt: was started with model.{key} {before}, not {now}; "
    assert words in message
    assert "set them as before" in message
    with pytest.raises(SystemExit, match=re.escape(words)):
        train_here(few_clips, *more, other, "checkpoint.reset_optimizer=true")
    assert last.read_bytes() == saved
    assert len(train_here(few_clips, *more)) == 1  # resumes with its own


def test_run_that_starts_from_weights_has_its_own_statistics(
    train_here: Train, few_clips: Path, tmp_path: Path
) -> None:
    train_here(few_clips, *RUN, *FIXED, "optimization.max_update=1")
    last = tmp_path / "checkpoints" / "checkpoint_last.pt"
    other = ("checkpoint.save_dir=other", "model.input_mean=-5", "optimization.max_update=1")
    train_here(few_clips, *RUN, *FIXED, *other, f"checkpoint.finetune_from_model={last}")
    model = mae_ast.load(tmp_path / "other" / "checkpoint_last.pt")
    assert model.batch_norm.running_mean.item() == -5


@pytest.mark.parametrize("given", [(), ("model.input_mean=-5",)])
def test_fine_tuning_from_weights_uses_its_settings(
    train_here: Train, caplog: pytest.LogCaptureFixture, tmp_path: Path, given: tuple[str, ...]
) -> None:
    """A setting that is null keeps the statistics of the weights."""
    data, pretrained = write_corpus(tmp_path / "data"), write_pretrained(tmp_path / "tiny.pt")
    run = (f"model.checkpoint={pretrained}", "optimization.max_update=1")
    finetune_here(caplog, "demo", data, *run, "model.input_mean=-6", "model.input_std=4")
    last = tmp_path / "checkpoints" / "checkpoint_last.pt"
    other = ("checkpoint.save_dir=other", f"checkpoint.finetune_from_model={last}")
    finetune_here(caplog, "demo", data, *run, *other, *given)
    weights = torch.load(tmp_path / "other" / "checkpoint_last.pt", weights_only=True)["model"]
    assert weights["encoder.batch_norm.running_mean"].item() == (-5 if given else -6)
    assert weights["encoder.batch_norm.running_var"].item() == 16


# --- data, labels and initial weights -----------------------------------------------------------

PRETRAINING = ("train.tsv", "valid.tsv", "checkpoint.finetune_from_model")
FINE_TUNING = (
    *("train.tsv", "valid.tsv", "labels.csv", "train.lbl", "valid.lbl"),
    "checkpoint.finetune_from_model",
)


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that starts or resumes a run as the command and its process do."""
    from fairseq.dataclass.initialize import hydra_init
    from hydra import compose, initialize_config_dir
    from hydra.core.hydra_config import HydraConfig

    from mae_ast import plugin
    from mae_ast.trainer import preflight

    plugin.register()
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
    monkeypatch.setenv("MAE_AST_RUN_NOTE", "")  # restored afterwards
    out = tmp_path / "run"

    def start(data: Data, *overrides: str, kind: str = "pretrain") -> None:
        resume_guard.check_and_defer(out / NOTE, {"data": "here"}, (out / NOTE).exists())
        command = train_command(data, "demo", out, list(overrides), kind)
        folder = command[command.index("--config-dir") + 1]
        wanted = command[command.index("--config-name") + 2 :]
        hydra_init("demo")
        with initialize_config_dir(folder, version_base="1.1"):
            preflight.guard_resume(compose("demo", overrides=wanted, return_hydra_config=True))

    return start


def refusal(start: Callable[..., None], data: Path, *overrides: str, kind: str) -> str:
    with pytest.raises(ValueError) as refused:  # noqa: PT011  (the words are compared below)
        start(data, *overrides, kind=kind)
    message = str(refused.value)
    assert "\n" not in message
    assert "give another --out, or remove begun_with.json if both are equivalent" in message
    return message


@pytest.mark.parametrize(("kind", "keys"), [("pretrain", PRETRAINING), ("finetune", FINE_TUNING)])
def test_rewritten_files_and_other_initial_weights_are_refused(
    start: Callable[..., None], tmp_path: Path, kind: str, keys: tuple[str, ...]
) -> None:
    data = write_corpus(tmp_path / "data")
    start(data, kind=kind)
    note = tmp_path / "run" / NOTE
    assert list(json.loads(note.read_text())) == ["data", *keys]
    start(data, kind=kind)
    for name in keys[:-1]:
        path, before = data / name, (data / name).read_bytes()
        path.write_bytes(before.replace(b"low", b"high").replace(b"_01.flac", b"_00.flac"))
        then, now = json.loads(note.read_text())[name], list_content(path)
        words = f"run: was started with {name} '{then}', not '{now}'; "
        assert words in refusal(start, data, kind=kind)
        path.write_bytes(before)
    other = "checkpoint.finetune_from_model=mae_ast_patch"
    words = "checkpoint.finetune_from_model null, not 'mae_ast_patch'; "
    assert words in refusal(start, data, other, kind=kind)
    start(data, kind=kind)


def test_rewritten_manifests_and_another_mixture_of_several_folders_are_refused(
    start: Callable[..., None], tmp_path: Path
) -> None:
    data = [write_corpus(tmp_path / name) for name in ("one", "two")]
    start(data, "task.mixture=[1,2]")
    start(data, "task.mixture=[1.0,2.0]")
    note = json.loads((tmp_path / "run" / NOTE).read_text())
    assert list(note)[1:5] == ["one/train.tsv", "one/valid.tsv", "two/train.tsv", "two/valid.tsv"]
    with pytest.raises(
        ValueError, match=r"with task\.mixture \[1\.0, 2\.0\], not \[1\.0, 3\.0\]; "
    ):
        start(data, "task.mixture=[1,3]")
    with (data[1] / "train.tsv").open("a") as manifest:
        manifest.write("tone.flac\t16000\t16000\n")
    with pytest.raises(ValueError, match=r"was started with two/train\.tsv '"):
        start(data, "task.mixture=[1,2]")


def test_clips_may_be_moved(start: Callable[..., None], tmp_path: Path) -> None:
    """The root, on the first line of a manifest, may be another folder."""
    data = write_corpus(tmp_path / "data")
    start(data)
    for name in ("train.tsv", "valid.tsv"):
        path = data / name
        path.write_text(path.read_text().replace(".\n", "/moved/clips\n", 1))
    start(data)


def test_only_files_that_the_run_reads_are_compared(
    start: Callable[..., None], tmp_path: Path
) -> None:
    data = write_corpus(tmp_path / "data")
    training = "dataset.disable_validation=true"
    start(data, training)
    for name in ("valid.tsv", "train.lbl", "labels.csv"):
        (data / name).write_text("")
    start(data, training)


def test_a_note_of_an_earlier_version_is_accepted(
    start: Callable[..., None], tmp_path: Path
) -> None:
    note = tmp_path / "run" / NOTE
    note.parent.mkdir()
    note.write_text(json.dumps({"data": "here"}))
    data = write_corpus(tmp_path / "data")
    start(data, "checkpoint.finetune_from_model=mae_ast_patch")
    assert json.loads(note.read_text()) == {"data": "here"}


def test_command_refuses_a_rewritten_manifest(few_clips: Path, tmp_path: Path) -> None:
    data = shutil.copytree(few_clips, tmp_path / "data")
    command = [
        *(PROGRAM, "pretrain", str(data), "--out", "run", *SMALL_ENCODER, *SMALL_DECODER),
        *(*SMALL_RUN, *RUN),
    ]
    first = [*command, "optimization.max_update=1"]
    Training(first, tmp_path / "first.log", forked=True).finish()
    last = tmp_path / "run" / "checkpoints" / "checkpoint_last.pt"
    saved = last.read_bytes()
    with (data / "train.tsv").open("a") as manifest:
        manifest.write("train_00.flac\t16000\t16000\n")
    second = [*command, "optimization.max_update=2"]
    again = Training(second, tmp_path / "second.log", forked=True)
    assert again.wait() == 1
    line = again.errors.splitlines()[-1]
    assert line.startswith(f"mae-ast: error: {tmp_path / 'run'}: was started with train.tsv '3 ")
    assert " not '4 lines, sha256 " in line
    assert last.read_bytes() == saved
