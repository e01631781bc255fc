"""Invalid settings and manifests are reported in one line, before training starts."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile

from .conftest import ONLY_TRAINING, Start, Training, sound, write_clips

Train = Callable[..., list[dict[str, str]]]


@pytest.fixture(scope="module")
def few_clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("few")
    write_clips(folder, "train", [1.0, 1.1, 1.2])
    write_clips(folder, "valid", [1.0])
    return folder


@pytest.fixture
def message(train_here: Train) -> Callable[..., str]:
    """Start a training that must be refused, and return its message.

    ``SystemExit`` with a text prints it to stderr and ends the program with status 1.
    """

    def message(data: Path, *overrides: str) -> str:
        with pytest.raises(SystemExit) as refusal:
            train_here(data, "dataset.num_workers=0", "checkpoint.no_save=true", *overrides)
        text = refusal.value.code
        assert isinstance(text, str)
        assert text.startswith("mae-ast: error: ")
        assert "\n" not in text
        return text

    return message


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["task.mask_type=chunks"],
            ["mask_type 'chunks'", "random_mask, random_mask_batched, chunk_mask, retain_spans"],
        ),
        (["model.random_mask_prob=0"], ["random_mask_prob 0.0", "between 0 and 1"]),
        (["model.random_mask_prob=1"], ["random_mask_prob 1.0", "between 0 and 1"]),
        (["model.random_mask_prob=1.45"], ["random_mask_prob 1.45", "chunk_mask"]),
        (
            ["model.ast_kernel_size_chan=24", "model.ast_kernel_stride_chan=24"],
            ["24 mel bins does not divide", "16, 32, 64"],
        ),
        (
            ["model.ast_kernel_stride_time=8"],
            ["ast_kernel_stride_time=8", "ast_kernel_size_time=16", "equal"],
        ),
        (["task.mask_type=retain_spans"], ["retain_spans", "ast_kernel_size_chan=128"]),
        (["dataset.max_tokens=9000"], ["dataset.max_tokens=9000", "train.tsv (16000 samples"]),
        (
            ["criterion.classification_weight=0", "criterion.reconstruction_weight=0"],
            [
                "criterion.reconstruction_weight=0",
                "criterion.classification_weight=0",
                "one must be positive",
            ],
        ),
        (["criterion.classification_weight=-1"], ["classification_weight=-1", "negative"]),
        (
            ["checkpoint.best_checkpoint_metric=mae", "criterion.classification_weight=0"],
            ["best_checkpoint_metric=mae:", "loss, mask_ratio, mse"],
        ),
        (["model.encoder_layers=0"], ["encoder_layers=0", ">= 1"]),
        (
            ["model.encoder_attention_heads=5"],
            ["encoder_attention_heads=5", "encoder_embed_dim=64"],
        ),
        (["model.precision=half"], ["precision='half'", "auto, float32, bfloat16"]),
        (["model.input_stats=none"], ["input_stats='none'", "batch, fixed"]),
        (["model.dropout=1"], ["dropout=1.0", "from 0 to below 1"]),
        (["task.max_bad_fraction=2"], ["task.max_bad_fraction=2.0", "from 0 to 1"]),
        (["task.min_sample_size=0"], ["task.min_sample_size=0", "null"]),
        (["task.max_sample_size=100"], ["task.max_sample_size=100", "task.min_sample_size=8000"]),
        (
            ["task.min_sample_size=500000", "task.max_sample_size=null"],
            ["train.tsv", "all 3 clips", "min_sample_size=500000"],
        ),
    ],
    ids=lambda value: " ".join(value) if "=" in value[0] else "",
)
def test_invalid_settings_are_named(
    few_clips: Path, message: Callable[..., str], overrides: list[str], words: list[str]
) -> None:
    text = message(few_clips, "dataset.disable_validation=true", *overrides)
    for word in words:
        assert word in text


@pytest.mark.parametrize(
    ("train_tsv", "words"),
    [
        (".\ntrain_00.flac\t16000\ntrain_01.flac\n", ["train.tsv:3", "'train_01.flac'", "tab"]),
        (".\ntrain_00.flac 16000\n", ["train.tsv:2", "'train_00.flac 16000'", "tab"]),
        (".\na\t1\t16000\t0\tmore\n", ["train.tsv:2", "5 columns"]),
        (".\na\t1\t16000\tmore\n", ["train.tsv:2", "'more'", "start in samples"]),
        (".\ntrain_00.flac\tlong\n", ["train.tsv:2", "'long'", "length in samples"]),
        (".\n\ntrain_00.flac\t-5\n", ["train.tsv:3", "'-5'", "positive"]),
        (".\ntrain_00.flac\t16000\t16k\n", ["train.tsv:2", "'16k'", "sample rate"]),
        (".\n", ["train.tsv", "lists no files", "one row per file"]),
        ("", ["train.tsv", "is empty", "root folder on line 1"]),
        ("train_00.flac\t16000\n", ["train.tsv:1", "not a root folder"]),
        (
            ".\ntrain_00.flac\t16000\nlost.flac\t16000\n",
            ["train.tsv:3", "lost.flac", "no such file", "root on line 1"],
        ),
    ],
    ids=[
        *("one column", "space for tab", "five columns", "start", "length", "negative", "rate"),
        *("only a root", "empty", "no root", "no such file"),
    ],
)
def test_invalid_manifest_names_the_file_and_line(
    few_clips: Path, tmp_path: Path, message: Callable[..., str], train_tsv: str, words: list[str]
) -> None:
    folder = tmp_path / "data"
    shutil.copytree(few_clips, folder)
    (folder / "train.tsv").write_text(train_tsv)
    text = message(folder)
    for word in [str(folder), *words]:
        assert word in text


def test_missing_manifest_is_named(
    few_clips: Path, tmp_path: Path, message: Callable[..., str]
) -> None:
    folder = tmp_path / "data"
    assert f"{folder}/valid.tsv: no such manifest" in message(folder)
    shutil.copytree(few_clips, folder)
    (folder / "train.tsv").unlink()
    assert f"{folder}/train.tsv: no such manifest" in message(folder)


def test_clip_shorter_than_a_patch_is_named(
    few_clips: Path, tmp_path: Path, message: Callable[..., str]
) -> None:
    folder = tmp_path / "data"
    shutil.copytree(few_clips, folder)
    soundfile.write(folder / "short.flac", sound(0.1, 0), 16_000)
    with (folder / "train.tsv").open("a") as file:
        file.write("short.flac\t1600\n")
    text = message(folder, "task.min_sample_size=null")
    # A patch of 16 frames: 400 + 15 x 160 samples.
    for word in (f"{folder}/train.tsv:5", "short.flac", "1600", "task.min_sample_size=2800"):
        assert word in text


# --- fairseq-hydra-train as a process -----------------------------------------------------------

PROGRAMS = {
    "data": "task.data=/no/such/folder",
    "unknown": "+model.encoder_layer=3",
    "type": "model.encoder_layers=abc",
    "misspelt": "model.encoder_layer=3",
}


@pytest.fixture(scope="module")
def programs(few_clips: Path, start_for_all: Start) -> dict[str, Training]:
    """Start all programs at once."""
    return {
        name: start_for_all(few_clips, *ONLY_TRAINING, override, out=name, HYDRA_FULL_ERROR="0")
        for name, override in PROGRAMS.items()
    }


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("data", ["/no/such/folder/train.tsv: no such manifest"]),
        ("unknown", ["encoder_layer"]),
        ("type", ["encoder_layers", "abc"]),
    ],
)
def test_program_ends_with_one_line(
    programs: dict[str, Training], name: str, words: list[str]
) -> None:
    run = programs[name]
    assert run.wait() == 1
    assert run.updates == {}
    assert "Traceback" not in run.output
    (line,) = [line for line in run.errors.splitlines() if line.startswith("mae-ast: error: ")]
    for word in words:
        assert word in line


def test_hydra_names_an_unknown_key(programs: dict[str, Training]) -> None:
    run = programs["misspelt"]
    assert run.wait() == 1
    assert "Traceback" not in run.output
    assert "Could not override 'model.encoder_layer'" in run.errors
