"""``fairseq-hydra-train`` on a GPU: losses as on the CPU, and resuming after signals."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.trainer.conftest import (
    ONLY_TRAINING,
    WITHOUT_DROPOUT,
    Start,
    corpus,  # noqa: F401 (a fixture, as is the next)
    start,  # noqa: F401
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]

GPU: Any = {"forked": False, "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0")}
MAX_UPDATE = 24
WIDE = (
    "model.encoder_embed_dim=192",
    "model.encoder_ffn_embed_dim=768",
    "model.encoder_attention_heads=3",
)
NARROW_DECODER = ("model.decoder_embed_dim=192",)


def values(run: Any, key: str) -> dict[int, float]:
    return {update: float(each[key]) for update, each in run.updates.items()}


def test_losses_match_the_cpu(corpus: Path, start: Start) -> None:  # noqa: F811
    """In float32, each half precision, padded and compiled; all runs at the same time."""
    common = (*WIDE, *NARROW_DECODER, *ONLY_TRAINING, "optimization.max_update=8")
    exact = (*common, *WITHOUT_DROPOUT)
    auto = (*exact, "model.precision=auto")
    kinds = {
        "float32": (exact, 1e-3),
        "auto": (auto, 2e-2),
        "fp16": ((*exact, "common.fp16=true"), 2e-2),
        "bf16": ((*exact, "common.bf16=true"), 4e-2),
        "amp": ((*exact, "common.amp=true"), 2e-2),
        "compiled": ((*auto, "model.compile=true"), 2e-2),
    }
    on_cpu = start(corpus, *exact, out="cpu")
    padded_on_cpu = start(corpus, *exact, "task.pad_audio=true", out="padded_cpu")
    runs = {}
    for kind, (overrides, _) in kinds.items():
        name = kind.replace(" ", "_")
        runs[kind] = start(corpus, *overrides, "common.cpu=false", out=name, **GPU)
    padded = start(corpus, *auto, "task.pad_audio=true", "common.cpu=false", out="padded", **GPU)
    expected = values(on_cpu.finish(), "loss")
    assert sorted(expected) == list(range(1, 9))
    for kind, (_, bound) in kinds.items():
        found = values(runs[kind].finish(), "loss")
        assert sorted(found)[-1] == 8, kind
        for update in found:
            if kind not in ("fp16", "amp"):  # their loss scale skips the first updates
                assert found[update] == pytest.approx(expected[update], rel=bound), kind
        assert all(np.isfinite(list(found.values()))), kind
    expected = values(padded_on_cpu.finish(), "loss")
    found = values(padded.finish(), "loss")
    assert found == pytest.approx(expected, rel=2e-2)


@pytest.mark.parametrize("name", ["ssast_patch", "audio_mae"])
def test_other_systems_train(corpus: Path, start: Start, name: str) -> None:  # noqa: F811
    run = start(
        corpus,
        *("optimization.max_update=6", "common.cpu=false", *WIDE, *ONLY_TRAINING),
        *(("model.decoder_embed_dim=192",) if name == "audio_mae" else ()),
        config=name,
        **GPU,
    ).finish()
    assert sorted(run.updates)[-1] == 6
    assert np.isfinite(run.losses).all()


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGKILL], ids=["SIGUSR1", "SIGKILL"])
def test_resumes_after_sigusr1_and_sigkill(
    corpus: Path,  # noqa: F811
    start: Start,  # noqa: F811
    number: signal.Signals,
) -> None:
    """Compare with an uninterrupted run, to rounding: GPU kernels add in any order.

    Dropout, crops and masks are random.
    """
    common = (
        *WIDE,
        *NARROW_DECODER,
        f"optimization.max_update={MAX_UPDATE}",
        "common.cpu=false",
        "model.dropout=0.1",
        "model.attention_dropout=0.1",
        "model.encoder_layerdrop=0.3",
        "task.random_crop=true",
        "dataset.num_workers=2",
        "checkpoint.save_interval_updates=5",
    )
    whole = start(corpus, *common, out="whole", **GPU)
    first = start(corpus, *common, out="parts", **GPU)
    first.wait_for_update(11)
    first.signal_group(number)
    first.wait()
    assert max(first.updates) < MAX_UPDATE
    second = start(corpus, *common, out="parts", **GPU).finish()
    assert min(second.updates) > 5
    expected = values(whole.finish(), "loss")
    found = values(first, "loss") | values(second, "loss")
    assert found == pytest.approx(expected, rel=2e-3)
    assert second.stats("valid")[-1]["valid_num_updates"] == str(MAX_UPDATE)
    valid = [float(run.stats("valid")[-1]["valid_loss"]) for run in (second, whole)]
    assert valid[0] == pytest.approx(valid[1], rel=2e-3)
