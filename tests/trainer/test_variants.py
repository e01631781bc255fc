"""Losses under other precisions, padding, filterbank devices, checkpointing and torch.compile."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mae_ast.tasks.mae_ast_pretraining import MaeAstPretrainingTask

from .conftest import ONLY_TRAINING, WITHOUT_DROPOUT

Losses = Callable[..., list[float]]


@pytest.fixture
def losses(corpus: Path, train_here: Callable[..., list[dict[str, str]]]) -> Losses:
    """``losses(overrides)``: train for eight updates and return their losses."""

    def losses(*overrides: str) -> list[float]:
        logged = train_here(
            corpus,
            "optimization.max_update=8",
            "dataset.num_workers=0",
            *WITHOUT_DROPOUT,
            *ONLY_TRAINING,
            *overrides,
        )
        assert len(logged) == 8
        values = [float(stats["loss"]) for stats in logged]
        assert all(math.isfinite(value) and value > 0 for value in values)
        assert all(0 < float(stats["gnorm"]) < 1e3 for stats in logged)
        assert values[0] != values[-1]
        return values

    return losses


@pytest.mark.parametrize("pad", ["false", "true"])
def test_filterbank_in_workers_equals_device(
    losses: Losses, pad: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_workers = losses(f"task.pad_audio={pad}")
    monkeypatch.setattr(MaeAstPretrainingTask, "_fbank_in_workers", lambda self: False)
    assert losses(f"task.pad_audio={pad}") == pytest.approx(in_workers, abs=1e-3)


def test_padding_keeps_whole_clips(losses: Losses) -> None:
    # Clips of 0.9 to 1 s: cropping removes their ends, padding keeps them.
    cropped, padded = losses("task.pad_audio=false"), losses("task.pad_audio=true")
    assert cropped != padded
    # Padding is never a target: silence would have another reconstruction error.
    assert padded == pytest.approx(cropped, rel=0.1)


@pytest.mark.parametrize("pad", ["false", "true"])
def test_bfloat16_is_close_to_float32(losses: Losses, pad: str) -> None:
    exact = losses("model.precision=float32", f"task.pad_audio={pad}")
    rough = losses("model.precision=bfloat16", f"task.pad_audio={pad}")
    assert rough != exact
    assert rough == pytest.approx(exact, rel=0.02)


# Flattened gradients are the only part of fairseq's half precision that needs a GPU.
@pytest.mark.usefixtures("fp16_without_a_gpu")
@pytest.mark.parametrize(
    "half", [("common.fp16=true", "common.fp16_no_flatten_grads=true"), ("common.bf16=true",)]
)
def test_half_precision_of_fairseq(losses: Losses, half: tuple[str, ...]) -> None:
    exact, rough = losses(), losses(*half)
    assert rough != exact
    assert rough == pytest.approx(exact, rel=0.05)


@pytest.mark.parametrize("pad", ["false", "true"])
def test_activation_checkpointing_keeps_the_losses(losses: Losses, pad: str) -> None:
    plain = losses(f"task.pad_audio={pad}")
    checkpointed = losses(f"task.pad_audio={pad}", "model.checkpoint_activations=true")
    assert checkpointed == plain


def test_compile_covers_all_layers(losses: Losses, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the calls of torch.compile are counted; compiled layers are tested elsewhere."""
    plain = losses()
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda compute: compiled.append(compute) or compute)
    assert losses("model.compile=true") == plain
    assert len(compiled) == 3  # two encoder layers and one decoder layer
