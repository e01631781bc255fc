"""Every system trains on a GPU without a host sync and without a copy from or to the CPU.

The GPU is a fake one, see :mod:`tests.fake_gpu`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from mae_ast.core.frontend.augment import Augmentation
from mae_ast.core.frontend.fbank import num_frames
from mae_ast.core.frontend.masking import structured_mask
from mae_ast.core.models.classifier import Classifier, HeadConfig
from mae_ast.core.models.encoder import Encoder
from mae_ast.core.models.registry import build_encoder
from tests.core.vits import Clips, Row, loss_of
from tests.fake_gpu import DEVICE, NoCopies, backward, fake_gpu, move, on_gpu
from tests.systems.cases import CASES, EQUAL, FIRST, UNEQUAL, Case

PRETRAINING = (
    *("mae_ast: batch statistics", "mae_ast: pre-norm", "ssast: two passes", "audio_mae: global"),
    *("audio_mae: local, shifted", "toy: patches"),
)

# The kinds of batches: waveforms, lengths and masks for a model.
BATCHES: dict[str, Callable[[Encoder], Clips]] = {
    "cropped": lambda model: Clips(model, *EQUAL),
    "padded": lambda model: Clips(model, *UNEQUAL),
}
PRETRAINING_BATCHES = BATCHES | {"packed": lambda model: Row(model, *UNEQUAL)}
PRECISIONS: dict[str, Callable[[Any], Any]] = {
    "float32": lambda model: with_precision(model, "float32"),
    "bfloat16": lambda model: with_precision(model, "bfloat16"),
    "float16": lambda model: model.half(),  # as fairseq does with common.fp16
}
batches = pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
precisions = pytest.mark.parametrize("convert", PRECISIONS.values(), ids=PRECISIONS)


def with_precision(model: nn.Module, precision: str) -> nn.Module:
    for module in model.modules():
        if isinstance(module, Encoder):
            module.precision = precision
    return model


def train_on_gpu(model: nn.Module, loss_of_inputs: Callable[..., Tensor], *inputs: Any) -> None:
    """Compute a loss and its gradients on the fake GPU, and check all devices and dtypes."""
    with torch.no_grad():
        loss_of_inputs(*inputs)  # the tables of positions grow
    with fake_gpu():
        inputs = on_gpu(inputs)
        move(model)
        with NoCopies():
            loss = loss_of_inputs(*inputs)
            backward(loss)
    assert (loss.device, loss.dtype) == (DEVICE, torch.float32)
    for name, p in model.named_parameters():
        if p.requires_grad:
            assert p.grad is not None, name
            assert (p.grad.device, p.grad.dtype) == (DEVICE, p.dtype), name


@pytest.mark.parametrize("name", PRETRAINING)
@pytest.mark.parametrize("batch", PRETRAINING_BATCHES.values(), ids=PRETRAINING_BATCHES)
@precisions
def test_pretraining(
    name: str, batch: Callable[[Any], Clips], convert: Callable[[Any], Any]
) -> None:
    regularised = {"encoder_layers": 1, "dropout": 0.1, "encoder_layerdrop": 0.1}
    model = convert(CASES[name].build(**regularised).train())
    clips = batch(model)
    train_on_gpu(
        model,
        lambda source, lengths, mask: loss_of(model(source, lengths, mask)),
        *(clips.source, clips.lengths, clips.mask),
    )


# --- classification -----------------------------------------------------------------------------


def bands(clips: Clips) -> Tensor:
    """Draw SpecAugment bands (B, 2, 2)."""
    augmentation = Augmentation(freq_mask=20, time_mask=20)
    draws = torch.Generator().manual_seed(0)
    frames = [num_frames(len(wave)) for wave in clips.waves]
    return torch.stack([augmentation.draw_hidden(n, draws) for n in frames])


def kept_patches(model: Classifier, clips: Clips) -> Tensor:
    """Draw visible patches (B, V) of the length of the shortest clip."""
    frames = min(num_frames(len(wave)) for wave in clips.waves)
    grid = model.encoder.patch_shape.grid(frames)
    return structured_mask(len(clips.waves), grid, 0.3, 0.3).visible_ids


@pytest.mark.parametrize(
    ("name", "head", "frozen"),
    [
        ("mae_ast: patches", HeadConfig(5), False),
        ("audio_mae: global", HeadConfig(5, kind="mlp", pool="tokens", dropout=0.1), False),
        ("ast: two", HeadConfig(5, pool="encoder"), False),
        ("vit: plain", HeadConfig(5, pool="encoder"), True),
    ],
)
@batches
@precisions
def test_fine_tuning(
    name: str,
    head: HeadConfig,
    frozen: bool,
    batch: Callable[[Any], Clips],
    convert: Callable[[Any], Any],
) -> None:
    encoder = build_encoder(CASES[name].config(encoder_layers=1, dropout=0.1))
    model = convert(Classifier(encoder, head, freeze_encoder=frozen).train())
    clips = batch(encoder)
    visible = kept_patches(model, clips) if head.pool == "tokens" else None
    labels = torch.arange(len(clips.waves))

    def loss(source: Tensor, lengths: Any, hidden: Tensor, visible: Any, labels: Tensor) -> Tensor:
        return F.cross_entropy(model(source, lengths, hidden, visible), labels)

    train_on_gpu(model, loss, clips.source, clips.lengths, bands(clips), visible, labels)


@pytest.mark.parametrize("case", FIRST.values(), ids=FIRST)
@batches
def test_features(case: Case, batch: Callable[[Any], Clips]) -> None:
    model = case.build(precision="auto").eval()
    clips = batch(model)
    with torch.no_grad():
        model.hidden_states(clips.source, clips.lengths)  # the tables of positions grow
    with fake_gpu(), torch.no_grad(), NoCopies():
        source, lengths = on_gpu((clips.source, clips.lengths))
        states = move(model).hidden_states(source, lengths)
        outputs = [*states, model.last_hidden_state(states), model.pooled(source, lengths)]
    assert {x.device for x in outputs} == {DEVICE}


# --- the fake GPU -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x: x.sum().item(),
        lambda x: x[x > 0],
        lambda x: x if x.any() else -x,
        lambda x: x.cpu(),
        lambda x: x + torch.ones(3).to(DEVICE),
        lambda x: x + torch.ones(3),
    ],
)
def test_what_waits_for_the_gpu_is_an_error(wrong: Callable[[Tensor], Any]) -> None:
    with fake_gpu(), NoCopies():
        x = torch.ones(3, device=DEVICE)
        assert (x + 1).device == DEVICE
        with pytest.raises((RuntimeError, AssertionError)):
            wrong(x)


def test_backward_computes_the_gradients() -> None:
    model = CASES["ssast: two passes"].build(precision="bfloat16").train()
    clips = Clips(model, *UNEQUAL)
    other = copy.deepcopy(model)
    loss_of(clips.predict(model)).backward()
    backward(loss_of(clips.predict(other)))
    for p, found in zip(model.parameters(), other.parameters(), strict=True):
        assert_close(found.grad, p.grad)
