"""A run is not resumed with different input statistics."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import mae_ast

from .classification import finetune_here, write_corpus, write_pretrained
from .conftest import write_clips

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
    with pytest.raises(SystemExit) as refusal:
        train_here(few_clips, *more, f"model.{key}={now}")
    message = str(refusal.value.code)
    assert message.startswith("mae-ast: error: ")
    assert "\n" not in message
    assert f"checkpoint_last.pt: trained with model.{key}={before}, not {now}" in message
    assert f"set model.{key}={before}" in message
    with pytest.raises(SystemExit, match=f"trained with model.{key}={before}"):
        train_here(few_clips, *more, f"model.{key}={now}", "checkpoint.reset_optimizer=true")
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
