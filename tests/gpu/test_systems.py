"""Losses and gradients of each system on a GPU, compared with float32 on the CPU."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from typing_extensions import Self

from mae_ast.core.frontend.fbank import fbank
from mae_ast.core.models.classifier import Classifier, HeadConfig
from mae_ast.core.models.encoder import Encoder, MaskedEncoder
from mae_ast.core.models.registry import build_encoder
from mae_ast.core.nn import attention
from mae_ast.core.nn.attention import KeyPadding, attend, has_varlen
from mae_ast.core.nn.transformer import TransformerLayer, compile_layers
from tests.core.vits import Clips, Row, loss_of
from tests.sounds import pcm16, speech_like
from tests.systems.cases import CASES

DEVICE = "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]

# Attention heads of width 64, as in the full-size models.
WIDTH: dict[str, Any] = {
    **{"encoder_layers": 3, "encoder_embed_dim": 192, "encoder_ffn_embed_dim": 768},
    **{"decoder_embed_dim": 128, "decoder_ffn_embed_dim": 768, "decoder_attention_heads": 4},
    **{"position_frames": 1024, "input_mean": 12.0, "input_std": 4.0},
}
NAMES = (
    *("mae_ast: patches", "mae_ast: frames", "ssast: patches", "ssast: two passes"),
    *("audio_mae: local", "audio_mae: global", "ast: two", "vit: plain", "toy: patches"),
    "classifier",
)
ALL_SYSTEMS = pytest.mark.parametrize("name", NAMES)
EQUAL, UNEQUAL = (48_000, 48_000, 48_000, 48_000), (48_000, 20_000, 33_000, 41_000)


BATCHES = pytest.mark.parametrize("kind", ["equal", "padded", "packed"])


class Batch(Clips):
    """Clips that can be moved to a device."""

    def to(self, device: str) -> Self:
        moved = copy.copy(self)
        moved.source, moved.mask = self.source.to(device), self.mask.to(device)
        moved.lengths = None if self.lengths is None else self.lengths.to(device)
        return moved


class RowBatch(Row, Batch):
    """Clips side by side in a row, which can be moved to a device."""


def build(name: str) -> Any:
    torch.manual_seed(0)
    case = CASES["mae_ast: patches" if name == "classifier" else name]
    config = case.config(**WIDTH)
    if name == "classifier":
        return Classifier(build_encoder(config), HeadConfig(5)).train()
    return case.system.network(config).train()


def batch_for(model: Any, kind: str) -> Batch:
    if kind == "packed":
        if not isinstance(model, MaskedEncoder):
            pytest.skip("only pretraining is packed")
        return RowBatch(model, *UNEQUAL)
    lengths = EQUAL if kind == "equal" else UNEQUAL
    return Batch(model.encoder if isinstance(model, Classifier) else model, *lengths)


def training_loss(model: Any, batch: Batch) -> Tensor:
    """Return the training loss, or a substitute that depends on all outputs."""
    if isinstance(model, MaskedEncoder):
        return loss_of(batch.predict(model)) / 1000
    if type(model) is Encoder:
        return model.pooled(batch.source, batch.lengths).float().square().sum()
    labels = torch.arange(len(batch.source), device=batch.source.device)
    logits = model(batch.source, batch.lengths).float()
    return nn.functional.cross_entropy(logits, labels)


def step(
    model: nn.Module,
    batch: Batch,
    context: Callable[[], AbstractContextManager[Any]] = nullcontext,
    loss_scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Return the loss and the concatenated gradients, in float64 on the CPU.

    ``loss_scale`` keeps small gradients within the range of float16, as fairseq does.
    """
    model.zero_grad()
    with context():
        loss = training_loss(model, batch)
    (loss * loss_scale).backward()
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    concatenated = torch.cat([g.double().cpu() for g in gradients]) / loss_scale
    return loss.detach().double().cpu(), concatenated


def difference(found: Tensor, expected: Tensor) -> float:
    """Return the relative error ||found - expected|| / ||expected||."""
    return float((found - expected).detach().norm() / expected.detach().norm())


def set_precision(model: nn.Module, precision: str) -> None:
    for module in model.modules():
        if hasattr(module, "precision"):
            module.precision = precision


@contextmanager
def no_synchronisation() -> Iterator[None]:
    """Raise an error if the host waits for the device."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@BATCHES
@pytest.mark.parametrize("how", ["float32", "bfloat16", "float16", "half", "compiled"])
@ALL_SYSTEMS
def test_losses_and_gradients_match_float32_on_the_cpu(name: str, how: str, kind: str) -> None:
    """``float16`` corresponds to fairseq's ``common.amp``, ``half`` to its ``common.fp16``."""
    model = build(name)
    batch = batch_for(model, kind)
    expected_loss, expected = step(model, batch)

    model, batch = copy.deepcopy(model).to(DEVICE), batch.to(DEVICE)
    context: Callable[[], AbstractContextManager[Any]] = nullcontext
    if how == "bfloat16":
        set_precision(model, how)
    elif how == "float16":
        context = lambda: torch.autocast(DEVICE, torch.float16)  # noqa: E731
    elif how == "half":
        model = model.half()
    elif how == "compiled":
        torch.compiler.reset()
        compile_layers(model)
    loss_scale = 256.0 if how in ("float16", "half") else 1.0
    loss, found = step(model, batch, context, loss_scale)
    bounds = {"float32": (1e-5, 2e-4), "compiled": (1e-5, 2e-4), "bfloat16": (1e-2, 3e-2)}
    loss_bound, gradient_bound = bounds.get(how, (2e-3, 1e-2))
    assert difference(loss, expected_loss) < loss_bound
    assert difference(found, expected) < gradient_bound


@BATCHES
@ALL_SYSTEMS
def test_a_step_never_waits_for_the_device(name: str, kind: str) -> None:
    model = build(name).to(DEVICE)
    set_precision(model, "bfloat16")
    batch = batch_for(model, kind).to(DEVICE)
    training_loss(model, batch).backward()  # warm-up: libraries initialise
    with no_synchronisation():
        training_loss(model, batch).backward()


@pytest.mark.parametrize("name", ["mae_ast: patches", "mae_ast: frames", "ssast: patches"])
def test_activation_checkpointing_keeps_dropout(name: str) -> None:
    model = build(name).to(DEVICE)
    batch = batch_for(model, "equal").to(DEVICE)
    results = []
    for checkpointed in (False, True):
        for layer in model.modules():
            if isinstance(layer, TransformerLayer):
                layer.checkpoint_activations = checkpointed
                layer.dropout.p = layer.self_attn.dropout = 0.1
        torch.manual_seed(3)
        results.append(step(model, batch))
    (plain_loss, plain), (loss, found) = results
    assert difference(loss, plain_loss) < 1e-6
    assert difference(found, plain) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_varlen_attention_equals_masked_attention(dtype: torch.dtype) -> None:
    q, k, v = (torch.randn(4, 3, 50, 64, device=DEVICE, dtype=dtype) for _ in range(3))
    lengths = torch.tensor([50, 1, 33, 20], device=DEVICE)
    padding_mask = torch.arange(50, device=DEVICE) >= lengths[:, None]
    assert has_varlen(q)
    results = []
    for uses_varlen in (True, False):
        inputs = [x.detach().clone().requires_grad_() for x in (q, k, v)]
        padding = KeyPadding(padding_mask)
        y = attend(*inputs, padding if uses_varlen else padding.attention_mask)
        y = y.masked_fill(padding_mask[:, None, :, None], 0)
        y.float().square().sum().backward()
        results.append([y, *(x.grad for x in inputs)])
    for found, expected in zip(*results, strict=True):
        assert difference(found.double(), expected.double()) < 1e-2


def test_padded_batches_use_varlen_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    kernel = attention.attend_by_lengths
    monkeypatch.setattr(
        attention, "attend_by_lengths", lambda *args: calls.append(0) or kernel(*args)
    )
    model = build("mae_ast: patches").to(DEVICE)
    set_precision(model, "auto")
    training_loss(model, batch_for(model, "padded").to(DEVICE)).backward()
    assert len(calls) == 3 + 2  # encoder and decoder layers


def test_a_compiled_layer_is_compiled_once_for_all_rows() -> None:
    torch.compiler.reset()
    model = build("mae_ast: patches").to(DEVICE)
    set_precision(model, "bfloat16")
    compile_layers(model)
    training_loss(model, RowBatch(model, *UNEQUAL).to(DEVICE)).backward()
    counters = torch._dynamo.utils.counters["stats"]
    before = counters["unique_graphs"]
    training_loss(model, RowBatch(model, *reversed(UNEQUAL)).to(DEVICE)).backward()
    assert counters["unique_graphs"] == before


def test_filterbank_matches_the_cpu() -> None:
    waves = torch.stack([pcm16(speech_like(160_000, seed)) for seed in range(3)])
    assert_close(fbank(waves.to(DEVICE)).cpu(), fbank(waves), rtol=1e-4, atol=1e-3)
