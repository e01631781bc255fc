"""Pretraining of SSAST with its presets."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq.trainer import Trainer

import mae_ast
import mae_ast.trainer.command
from mae_ast.core.frontend.collate import Clip, Collater
from mae_ast.core.frontend.fbank import num_samples_of_frames
from mae_ast.core.frontend.masking import count_visible
from mae_ast.core.models.config import SsastConfig
from mae_ast.core.models.registry import parse_config
from mae_ast.core.models.ssast import Ssast
from mae_ast.tasks.mae_ast_pretraining import MaeAstPretrainingTask

from .conftest import (
    ONLY_TRAINING,
    SMALL_ENCODER,
    SMALL_RUN,
    TRAINING_KEYS,
    Start,
    Training,
    preset,
)

Train = Callable[..., list[dict[str, str]]]
Losses = Callable[..., list[float]]
PRESETS = ("ssast_patch", "ssast_frame")
HEADS = ("final_proj_reconstruction", "final_proj_classification")


@pytest.mark.parametrize("name", PRESETS)
def test_presets_mask_400_of_512_patches(name: str) -> None:
    settings = preset(name)
    mask_type = settings["task"]["mask_type"]
    config = parse_config(settings["model"])
    config.check_pretraining(mask_type)
    longest = settings["task"]["max_sample_size"]
    assert longest == num_samples_of_frames(config.position_frames)
    silence = torch.zeros(longest, dtype=torch.int16)
    batch = Collater(config, mask_type)([Clip.of(n, silence, 1, 1) for n in range(2)])
    assert (batch.num_visible, batch.num_masked) == (2 * 112, 2 * 400)
    assert not torch.equal(*batch.mask.masked_ids)
    with torch.device("meta"):
        model = Ssast(config)
    assert model.positions.table.shape == (1, 2 + 512, 768)
    assert len(model.encoder.layers) == 12


@pytest.mark.parametrize("name", PRESETS)
def test_presets_list_every_key_to_override(name: str) -> None:
    settings, mae_ast_settings = preset(name), preset("mae_ast")
    fields = {f.name for f in dataclasses.fields(SsastConfig)}
    fields |= TRAINING_KEYS
    assert set(settings["model"]) == fields | {"_name"}
    for section in ("task", "criterion", "optimizer", "lr_scheduler"):
        assert set(settings[section]) == set(mae_ast_settings[section])


# --- in separate processes ----------------------------------------------------------------------

SHORT = ("optimization.max_update=3", "dataset.num_workers=1")


@pytest.fixture(scope="module")
def runs(
    corpus: Path, start_for_all: Start, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Training]]:
    """Trainings that run at the same time.

    All but "frame" use the command line that ``mae-ast pretrain DATA --config NAME`` builds.
    """

    def pretrain(config: str, *overrides: str) -> Training:
        out = tmp_path_factory.mktemp(config)
        arguments = [*SMALL_ENCODER, *SMALL_RUN, *SHORT, *overrides]
        command = mae_ast.trainer.command.train_command(corpus, config, out, arguments)
        return Training(command, out / "run.log", forked=True, HYDRA_FULL_ERROR="0")

    runs = {
        "frame": start_for_all(corpus, *SHORT, *ONLY_TRAINING, config="ssast_frame"),
        "patch": pretrain("ssast_patch"),
        "preset of another system": pretrain("mae_ast", "model._name=ssast"),
    }
    yield runs
    for run in runs.values():
        run.kill()


@pytest.mark.parametrize(("name", "num_patches"), [("patch", 6 * 8), ("frame", 49)])
def test_presets_train(runs: dict[str, Training], name: str, num_patches: int) -> None:
    run = runs[name].finish()
    assert sorted(run.updates) == [1, 2, 3]
    ratio = 1 - count_visible(num_patches, 0.78125) / num_patches
    for values in run.updates.values():
        loss, mse, info_nce = (float(values[key]) for key in ("loss", "mse", "info_nce"))
        assert math.isfinite(loss)
        assert loss == pytest.approx(10 * mse + info_nce, rel=1e-3)
        assert 0 < float(values["gnorm"]) < 1e3
        assert float(values["mask_ratio"]) == pytest.approx(ratio, abs=0.01)
    assert len(set(run.losses)) == 3


def test_a_checkpoint_loads(runs: dict[str, Training]) -> None:
    out = runs["patch"].finish().log.parent
    checkpoint = out / "checkpoints" / "checkpoint_last.pt"
    model_cfg = torch.load(checkpoint, weights_only=True)["cfg"]["model"]
    assert model_cfg["_name"] == "ssast"
    assert {f.name for f in dataclasses.fields(SsastConfig)} <= set(model_cfg)
    model = mae_ast.load(checkpoint)
    assert isinstance(model, Ssast)
    assert model.mask_type == "chunk_mask"
    assert model.config.encoder_embed_dim == 64
    assert not model.training


def test_validation_writes_a_plot(runs: dict[str, Training]) -> None:
    run = runs["patch"].finish()
    assert math.isfinite(float(run.stats("valid")[0]["valid_loss"]))
    assert list((run.log.parent / "tblog" / "pictures").glob("events.out.tfevents.*"))


def test_the_preset_of_another_system_gives_a_one_line_error(
    runs: dict[str, Training],
) -> None:
    run = runs["preset of another system"]
    assert run.wait() == 1
    assert "Traceback" not in run.output
    (line,) = [line for line in run.errors.splitlines() if line.startswith("mae-ast: error: ")]
    assert "model.decoder_layers: there is no such setting of model._name=ssast" in line


# --- in this process ----------------------------------------------------------------------------


@pytest.fixture
def logged(corpus: Path, train_here: Train) -> Train:
    """``logged(overrides)``: train for four updates and return the values that each logged."""

    def logged(*overrides: str, config: str = "ssast_patch") -> list[dict[str, str]]:
        return train_here(
            corpus,
            "optimization.max_update=4",
            "dataset.num_workers=0",
            "model.precision=float32",
            *ONLY_TRAINING,
            *overrides,
            config=config,
        )

    return logged


@pytest.mark.parametrize("config", PRESETS)
def test_one_pass_equals_two_passes(losses: Losses, config: str) -> None:
    one, two = (losses(f"model.two_pass={two}", config=config) for two in ("false", "true"))
    assert one[0] == two[0]
    assert one == pytest.approx(two, rel=1e-4)


# Clips of 0.9 to 1.7 s: input_frames cuts some and zero-pads others.
@pytest.mark.parametrize(
    "lengths",
    [
        ("task.pad_audio=false",),
        ("task.pad_audio=true", "model.input_frames=128", "task.max_sample_size=null"),
    ],
    ids=["cropped", "zero-padded"],
)
def test_filterbank_in_workers_equals_device(
    losses: Losses, lengths: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    in_workers = losses(*lengths)
    assert losses("model.window_type=povey", *lengths) != pytest.approx(in_workers, abs=1e-3)
    monkeypatch.setattr(MaeAstPretrainingTask, "_fbank_in_workers", lambda self: False)
    assert losses(*lengths) == pytest.approx(in_workers, abs=1e-3)


@pytest.mark.parametrize(
    ("overrides", "untrained"),
    [
        ((), ()),
        (("criterion.reconstruction_weight=0", "model.two_pass=true"), HEADS[:1]),
        (("criterion.classification_weight=0",), HEADS[1:]),
    ],
    ids=["both", "classification", "reconstruction"],
)
def test_only_heads_without_a_loss_get_no_gradient(
    logged: Train,
    monkeypatch: pytest.MonkeyPatch,
    overrides: tuple[str, ...],
    untrained: tuple[str, ...],
) -> None:
    without: list[set[str]] = []
    clip = Trainer.clip_grad_norm

    def watch(trainer: Trainer, *args: Any) -> Any:
        parameters = trainer.get_model().named_parameters()
        without.append({name for name, value in parameters if value.grad is None})
        return clip(trainer, *args)

    monkeypatch.setattr(Trainer, "clip_grad_norm", watch)
    for stats in logged(*overrides):
        assert ("mse" in stats) == (HEADS[0] not in untrained)
        assert ("info_nce" in stats) == (HEADS[1] not in untrained)
    assert len(without) == 4
    for names in without:
        assert {name.partition(".")[0] for name in names} == set(untrained)


def test_resumes_bit_exactly(corpus: Path, train_here: Train) -> None:
    run = (
        "optimization.max_update=6",
        "dataset.num_workers=0",
        "dataset.disable_validation=true",
        "checkpoint.save_interval_updates=3",
        "checkpoint.keep_interval_updates=-1",
        "model.dropout=0.1",
        "model.encoder_layerdrop=0.3",
    )
    whole = train_here(corpus, *run, config="ssast_patch")
    saved = "checkpoint.restore_file=checkpoints/checkpoint_1_3.pt"
    rest = train_here(corpus, *run, saved, config="ssast_patch")
    assert [stats["num_updates"] for stats in rest] == ["4", "5", "6"]
    for one, other in zip(rest, whole[3:], strict=True):
        assert {key: one[key] for key in ("loss", "gnorm", "lr")} == {
            key: other[key] for key in ("loss", "gnorm", "lr")
        }


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["+model.decoder_layers=2"], ["decoder_layers", "no such setting"]),
        (
            ["model.ast_kernel_stride_time=10"],
            ["ast_kernel_stride_time=10", "ast_kernel_size_time=16", "equal"],
        ),
        (["task.mask_type=retain_spans"], ["retain_spans", "ast_kernel_size_chan=128"]),
        (["model.random_mask_prob=400"], ["random_mask_prob 400", "between 0 and 1"]),
        (["model.input_frames=9"], ["input_frames=9", "ast_kernel_size_time=16"]),
    ],
    ids=lambda value: value[0] if "=" in value[0] else "",
)
def test_invalid_settings_give_a_one_line_error(
    logged: Train, overrides: list[str], words: list[str]
) -> None:
    with pytest.raises(SystemExit) as refusal:
        logged(*overrides)
    text = refusal.value.code
    assert isinstance(text, str)
    assert text.startswith("mae-ast: error: ")
    assert "\n" not in text
    for word in words:
        assert word in text
