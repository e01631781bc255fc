"""Ways to compute the same training, or to train on other batches, give the losses they should."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from .conftest import ONLY_TRAINING, WITHOUT_DROPOUT

Losses = Callable[..., list[float]]


@pytest.fixture
def losses(corpus: Path, train_here: Callable[..., list[dict[str, str]]]) -> Losses:
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
def test_filterbank_in_workers_or_on_the_device(losses: Losses, pad: str) -> None:
    in_workers = losses("task.fbank=workers", f"task.pad_audio={pad}")
    on_device = losses("task.fbank=device", f"task.pad_audio={pad}")
    assert on_device == pytest.approx(in_workers, abs=1e-3)


def test_padding_sees_more_of_the_clips(losses: Losses) -> None:
    # Clips of 0.9 to 1 s: cropped they lose their ends, padded they keep them.
    cropped, padded = losses("task.pad_audio=false"), losses("task.pad_audio=true")
    assert cropped != padded
    # Nothing of the padding is a target: silence would be rebuilt with another error.
    assert padded == pytest.approx(cropped, rel=0.1)


@pytest.mark.parametrize("pad", ["false", "true"])
def test_bfloat16_is_near_float32(losses: Losses, pad: str) -> None:
    exact = losses("model.precision=float32", f"task.pad_audio={pad}")
    rough = losses("model.precision=bfloat16", f"task.pad_audio={pad}")
    assert rough != exact
    assert rough == pytest.approx(exact, rel=0.02)


# Flattened gradients are fairseq's only part of half precision that asks for a GPU.
@pytest.mark.usefixtures("fp16_without_a_gpu")
@pytest.mark.parametrize(
    "half", [("common.fp16=true", "common.fp16_no_flatten_grads=true"), ("common.bf16=true",)]
)
@pytest.mark.parametrize("place", ["workers", "device"])
def test_half_precision_of_fairseq(losses: Losses, half: tuple[str, ...], place: str) -> None:
    exact = losses()
    rough = losses(f"task.fbank={place}", *half)
    assert rough != exact
    assert rough == pytest.approx(exact, rel=0.05)


@pytest.mark.parametrize("pad", ["false", "true"])
def test_checkpointed_layers(losses: Losses, pad: str) -> None:
    plain = losses(f"task.pad_audio={pad}")
    checkpointed = losses(f"task.pad_audio={pad}", "model.checkpoint_activations=true")
    assert checkpointed == plain


def test_compiled_layers(losses: Losses, monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch makes of a layer is tested elsewhere; here, that all layers come to it."""
    plain = losses()
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda compute: compiled.append(compute) or compute)
    assert losses("model.compile=true") == plain
    assert len(compiled) == 3  # two layers of the encoder, one of the decoder
