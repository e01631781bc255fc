"""Warnings about settings that train badly without failing: one line each, naming the keys."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from mae_ast.core.frontend.input_stats import are_far
from mae_ast.trainer import ranks

from .classification import TINY_AST, finetune_here
from .conftest import LAUNCHER, ONLY_TRAINING, Start, write_clips

Train = Callable[..., list[dict[str, str]]]
Warnings = Callable[..., list[str]]

ONE_UPDATE = (
    *(*ONLY_TRAINING, "dataset.num_workers=0", "optimization.max_update=1"),
    "lr_scheduler.warmup_updates=0",
)
FIXED = "model.input_stats=fixed"


def warnings_of_mae_ast(records: list[logging.LogRecord]) -> list[str]:
    """Return the warnings and errors logged by this package."""
    return [
        record.getMessage()
        for record in records
        if record.levelno >= logging.WARNING and record.name.startswith("mae_ast")
    ]


@pytest.fixture
def pretrain(train_here: Train, caplog: pytest.LogCaptureFixture) -> Warnings:
    """``pretrain(data, overrides)``: return the warnings of a pretraining of one update."""

    def pretrain(data: Path, *overrides: str, config: str = "mae_ast") -> list[str]:
        train_here(data, *ONE_UPDATE, *overrides, config=config)
        return warnings_of_mae_ast(caplog.records)

    return pretrain


@pytest.fixture
def finetune(
    train_here: Train, caplog: pytest.LogCaptureFixture, tones: Path, pretrained: Path
) -> Warnings:
    """``finetune(overrides)``: return the warnings of a fine-tuning of one update."""

    def finetune(*overrides: str, preset: str = "demo") -> list[str]:
        start = f"model.checkpoint={pretrained}"
        finetune_here(caplog, preset, tones, *ONE_UPDATE, start, *overrides)
        return warnings_of_mae_ast(caplog.records)

    return finetune


def test_suitable_pretraining_settings_give_no_warning(pretrain: Warnings, corpus: Path) -> None:
    assert pretrain(corpus) == []


def test_suitable_finetuning_settings_give_no_warning(finetune: Warnings) -> None:
    assert finetune() == []


# --- learning rate ------------------------------------------------------------------------------


def test_warmup_longer_than_training(pretrain: Warnings, corpus: Path) -> None:
    (text,) = pretrain(corpus, "lr_scheduler.warmup_updates=32000", "optimization.max_update=2")
    assert text.startswith("lr_scheduler.warmup_updates=32000: training ends after 2 updates")
    assert "\n" not in text


def test_warmup_longer_than_the_last_epoch(finetune: Warnings) -> None:
    """24 clips in batches of 8 give 3 updates per epoch, or 2 with update_freq 2."""
    overrides = ["optimization.max_update=0", "optimization.max_epoch=2"]
    overrides += ["optimization.update_freq=[1,2]"]
    assert finetune(*overrides, "lr_scheduler.warmup_updates=4", preset="esc50") == []
    (text,) = finetune(*overrides, "lr_scheduler.warmup_updates=5", preset="esc50")
    assert text.startswith("lr_scheduler.warmup_updates=5: training ends after 5 updates")


def test_learning_rate_reaches_zero_before_the_end(pretrain: Warnings, corpus: Path) -> None:
    (text,) = pretrain(corpus, "lr_scheduler.total_num_update=2", "optimization.max_update=3")
    assert "lr_scheduler.total_num_update=2" in text
    assert "training ends after 3 updates" in text


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["optimization.max_update=0"], ["cosine needs an end", "optimization.max_update (now 0)"]),
        (["lr_scheduler.warmup_updates=1"], ["warmup_updates=1", "optimization.max_update=1"]),
    ],
)
def test_cosine_schedule_without_an_end(
    finetune: Warnings, overrides: list[str], words: list[str]
) -> None:
    """fairseq would fail with an assertion, or divide by zero in the last update."""
    with pytest.raises(SystemExit) as refusal:
        finetune(*overrides)
    assert str(refusal.value.code).startswith("mae-ast: error: lr_scheduler")
    for word in words:
        assert word in str(refusal.value.code)


@pytest.mark.parametrize(
    ("metric", "maximize"), [("info_nce_accuracy", "false"), ("loss", "true"), ("mse", "true")]
)
def test_best_checkpoint_metric_in_the_wrong_direction(
    pretrain: Warnings, corpus: Path, metric: str, maximize: str
) -> None:
    key = "checkpoint.maximize_best_checkpoint_metric"
    given = (f"checkpoint.best_checkpoint_metric={metric}", "checkpoint.no_save=false")
    (text,) = pretrain(corpus, *given, f"{key}={maximize}")
    which = "highest" if maximize == "true" else "lowest"
    assert f"{key}={maximize} keeps the checkpoint with the {which} {metric}" in text
    assert text.endswith("set it to " + ("false" if maximize == "true" else "true"))


# --- clips skipped ------------------------------------------------------------------------------


def test_many_clips_skipped(pretrain: Warnings, tmp_path: Path) -> None:
    """Warn if 4 of 10 clips are skipped, in validation too, but not if a tenth is."""
    data = tmp_path / "data"
    data.mkdir()
    write_clips(data, "train", [0.3] * 3 + [1.0] * 6 + [1.6])
    write_clips(data, "valid", [0.3] + [1.0] * 9)
    text, *more = pretrain(data, "task.max_keep_size=24000")
    assert not more
    assert f"{data / 'train.tsv'}: 4 of 10 clips are skipped" in text
    assert "3 shorter than 0.5 s (task.min_sample_size=8000)" in text
    assert "1 longer than 1.5 s (task.max_keep_size=24000)" in text
    with_validation = pretrain(
        data, "task.min_sample_size=14000", "dataset.disable_validation=false"
    )
    assert [text.split(" clips")[0] for text in with_validation] == [
        f"{data / 'train.tsv'}: 3 of 10"
    ]


def test_all_clips_skipped(pretrain: Warnings, corpus: Path) -> None:
    with pytest.raises(SystemExit) as refusal:
        pretrain(corpus, "task.min_sample_size=32000", "task.max_sample_size=32000")
    text = str(refusal.value.code)
    assert f"{corpus / 'train.tsv'}: all 26 clips" in text
    assert "26 shorter than 2 s (task.min_sample_size=32000)" in text
    assert "lengths are 0.9" in text


def test_clips_longer_than_a_batch(
    pretrain: Warnings, corpus: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The warning is logged once, not in each epoch."""
    (text,) = pretrain(
        corpus,
        *("task.max_sample_size=null", "dataset.max_tokens=20000", "optimization.max_update=20"),
    )
    assert "of 26 clips are longer than dataset.max_tokens=20000 (1.25 s) and skipped" in text
    assert "have invalid sizes" not in caplog.text


# --- input statistics ---------------------------------------------------------------------------


def test_fixed_input_statistics_at_their_defaults(pretrain: Warnings, corpus: Path) -> None:
    (text,) = pretrain(corpus, FIXED)
    assert text.startswith("model.input_mean=0 and model.input_std=1 are far from the data")
    assert f"mae-ast stats {corpus / 'train.tsv'} --window povey" in text
    # The advised values give no warning.
    advised = text.partition("; set ")[2].split(" (")[0].split()
    assert [key.split("=")[0] for key in advised] == ["model.input_mean", "model.input_std"]
    assert pretrain(corpus, FIXED, *advised) == []


def test_a_training_process_warns_once(start: Start, corpus: Path) -> None:
    """The preflight check, on a model without weights, logs no warning."""
    run = start(corpus, *ONE_UPDATE, FIXED, program=LAUNCHER).finish()
    assert run.output.count("are far from the data") == 1


@pytest.mark.parametrize("config", ["ssast_patch", "audio_mae"])
def test_input_statistics_of_other_systems(pretrain: Warnings, corpus: Path, config: str) -> None:
    """Their defaults are AudioSet's statistics, which are close to these clips."""
    small = ["model.decoder_embed_dim=64"] if config == "audio_mae" else []
    assert pretrain(corpus, *small, config=config) == []
    (text,) = pretrain(corpus, *small, "model.input_mean=0", "model.input_std=1", config=config)
    assert "are far from the data" in text
    assert "--window hanning" in text


def test_input_statistics_in_fine_tuning(finetune: Warnings) -> None:
    (text,) = finetune("model.input_mean=4", "model.input_std=4.5")
    assert text.startswith("model.input_mean=4 and model.input_std=4.5 are far from the data")
    assert "log-mel of 24 clips" in text


def test_are_far() -> None:
    """AST's data sets are close; audio that is 23 dB quieter or has half the std is far."""
    audioset, esc50, commands = (-4.268, 4.569), (-6.627, 5.358), (-6.846, 5.565)
    for data in (esc50, commands):
        assert not are_far(*data, *audioset)
        assert not are_far(*audioset, *data)
    assert are_far(-4.268 - 5.3, 4.569, *audioset)
    assert are_far(-4.268, 2.2, *audioset)
    assert are_far(-4.268, 9.2, *audioset)


# --- clips cropped ------------------------------------------------------------------------------


def test_clips_cropped_to_a_fraction(finetune: Warnings) -> None:
    """Training uses 0.18 s of clips of 0.3 to 0.5 s."""
    (text,) = finetune("task.max_sample_size=2880")
    assert "each epoch uses 4" in text  # percent
    assert "at most 0.18 s of each clip (median 0.4" in text
    assert text.endswith("raise task.max_sample_size=2880 to use more")


def test_clips_cut_by_the_network(
    train_here: Train, caplog: pytest.LogCaptureFixture, tones: Path
) -> None:
    """Without random crops the network always gets the beginning."""
    finetune_here(
        *(caplog, "ast_esc50", tones, *ONE_UPDATE, *TINY_AST),
        *("task.max_sample_size=null", "model.input_frames=16", "model.position_frames=16"),
    )
    (text,) = warnings_of_mae_ast(caplog.records)
    assert "training uses 4" in text  # percent
    assert "the first 0.175 s of each clip" in text
    assert text.endswith("raise model.input_frames=16 to use more")


def test_other_ranks_log_no_warnings(
    pretrain: Warnings, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "is_first", lambda: False)
    far = (FIXED, "task.min_sample_size=20000", "task.max_sample_size=20000")
    assert pretrain(corpus, *far, "lr_scheduler.warmup_updates=9") == []
