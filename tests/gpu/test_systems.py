"""Losses and gradients of each system on a GPU, compared with float32 on the CPU."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from mae_ast.core.frontend.fbank import fbank, num_frames
from mae_ast.core.frontend.masking import MaskIds, pad_mask_ids, random_mask
from mae_ast.core.models.ast import Ast
from mae_ast.core.models.audio_mae import AudioMae
from mae_ast.core.models.classifier import Classifier, HeadConfig
from mae_ast.core.models.config import (
    AstConfig,
    AudioMaeConfig,
    MaeAstConfig,
    SsastConfig,
    VitConfig,
)
from mae_ast.core.models.encoder import Encoder, encoder_only
from mae_ast.core.models.losses import info_nce_loss, reconstruction_loss
from mae_ast.core.models.mae_ast import MaeAst
from mae_ast.core.models.ssast import Ssast
from mae_ast.core.nn import attention
from mae_ast.core.nn.attention import KeyPadding, attend, has_varlen
from mae_ast.core.nn.transformer import TransformerLayer, compile_layers
from tests.sounds import pcm16, speech_like

DEVICE = "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]

# Attention heads of width 64, as in the full-size models.
WIDTH = {
    "encoder_layers": 3,
    "encoder_embed_dim": 192,
    "encoder_ffn_embed_dim": 768,
    "encoder_attention_heads": 3,
    "input_stats": "fixed",
    "input_mean": 12.0,
    "input_std": 4.0,
}
NO_DROPOUT = dict.fromkeys(
    ("dropout", "attention_dropout", "dropout_input", "encoder_layerdrop"), 0.0
)
FRAMES = {
    "ast_kernel_size_chan": 128,
    "ast_kernel_stride_chan": 128,
    "ast_kernel_size_time": 2,
    "ast_kernel_stride_time": 2,
}
MAE_AST = {"decoder_layers": 2, "decoder_embed_dim": 192}
AUDIO_MAE = {"decoder_layers": 2, "decoder_embed_dim": 128, "decoder_attention_heads": 4}
NUM_CLASSES = 5
EQUAL, UNEQUAL = (48_000, 48_000, 48_000, 48_000), (48_000, 20_000, 33_000, 41_000)

Build = Callable[[], nn.Module]


def _network(network: type, config: type, **fields: Any) -> Build:
    known = set(config.__dataclass_fields__)  # type: ignore[attr-defined]
    settings = {"precision": "float32", **WIDTH, **NO_DROPOUT, **fields}
    return lambda: network(config(**{k: v for k, v in settings.items() if k in known}))


def _classifier() -> nn.Module:
    model = _network(MaeAst, MaeAstConfig, **MAE_AST)()
    return Classifier(encoder_only(model), HeadConfig(NUM_CLASSES))


SYSTEMS: dict[str, Build] = {
    "mae_ast patch": _network(MaeAst, MaeAstConfig, **MAE_AST),
    "mae_ast frame": _network(MaeAst, MaeAstConfig, **MAE_AST, **FRAMES),
    "ssast one pass": _network(Ssast, SsastConfig),
    "ssast two passes": _network(Ssast, SsastConfig, two_pass=True),
    "audio_mae local": _network(AudioMae, AudioMaeConfig, **AUDIO_MAE),
    "audio_mae global": _network(AudioMae, AudioMaeConfig, **AUDIO_MAE, decoder_attention="global"),
    "ast": _network(Ast, AstConfig, num_classes=NUM_CLASSES),
    "vit": _network(Encoder, VitConfig),
    "classifier": _classifier,
}
ALL_SYSTEMS = pytest.mark.parametrize("name", SYSTEMS)


@dataclass
class Batch:
    """Clips with a mask for each.

    Args:
        source: (B, L) int16 at 16 kHz.
        lengths: (B,) samples of each clip; ``None``: all L.
        mask: mask ids of the batch.
    """

    source: Tensor
    lengths: Tensor | None
    mask: MaskIds

    def to(self, device: str) -> Batch:
        lengths = None if self.lengths is None else self.lengths.to(device)
        return Batch(self.source.to(device), lengths, self.mask.to(device))


def batch_for(model: Any, lengths: tuple[int, ...]) -> Batch:
    shape = getattr(model, "encoder", model)
    shape = model.patch_shape if hasattr(model, "patch_shape") else shape.patch_shape
    generator = torch.Generator().manual_seed(1)
    grids = [shape.grid(num_frames(n)) for n in lengths]
    masks = [random_mask(1, grid, 0.75, generator) for grid in grids]
    waves = [pcm16(speech_like(n, seed)) for seed, n in enumerate(lengths)]
    source = nn.utils.rnn.pad_sequence(waves, batch_first=True)
    lengths_or_none = torch.tensor(lengths) if len(set(lengths)) > 1 else None
    return Batch(source, lengths_or_none, pad_mask_ids(masks))


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    """Return the training loss, or a substitute that depends on all outputs."""
    if isinstance(model, (MaeAst, Ssast, AudioMae)):
        mask = batch.mask
        out = model(batch.source, batch.lengths, mask)
        loss = 10 * reconstruction_loss(out.reconstruction, out.target, out.valid)
        if out.classification is not None:
            loss = loss + info_nce_loss(out.classification, out.target, out.valid).loss
        return loss / 1000
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
        loss = loss_of(model, batch)
    (loss * loss_scale).backward()
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    concatenated = torch.cat([g.double().cpu() for g in gradients]) / loss_scale
    return loss.detach().double().cpu(), concatenated


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return SYSTEMS[name]().train()


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


@pytest.mark.parametrize("lengths", [EQUAL, UNEQUAL], ids=["equal", "padded"])
@pytest.mark.parametrize("how", ["float32", "bfloat16", "float16", "half", "compiled"])
@ALL_SYSTEMS
def test_losses_and_gradients_match_float32_on_the_cpu(
    name: str, how: str, lengths: tuple[int, ...]
) -> None:
    """``float16`` corresponds to fairseq's ``common.amp``, ``half`` to its ``common.fp16``."""
    model = build(name)
    batch = batch_for(model, lengths)
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


@pytest.mark.parametrize("lengths", [EQUAL, UNEQUAL], ids=["equal", "padded"])
@ALL_SYSTEMS
def test_a_step_never_waits_for_the_device(name: str, lengths: tuple[int, ...]) -> None:
    model = build(name).to(DEVICE)
    set_precision(model, "bfloat16")
    batch = batch_for(model, lengths).to(DEVICE)
    loss_of(model, batch).backward()  # warm-up: libraries initialise
    with no_synchronisation():
        loss_of(model, batch).backward()


@pytest.mark.parametrize("name", ["mae_ast patch", "mae_ast frame", "ssast one pass"])
def test_activation_checkpointing_keeps_dropout(name: str) -> None:
    model = build(name).to(DEVICE)
    batch = batch_for(model, EQUAL).to(DEVICE)
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
    model = build("mae_ast patch").to(DEVICE)
    set_precision(model, "auto")
    loss_of(model, batch_for(model, UNEQUAL).to(DEVICE)).backward()
    assert len(calls) == 3 + 2  # encoder and decoder layers


def test_filterbank_matches_the_cpu() -> None:
    waves = torch.stack([pcm16(speech_like(160_000, seed)) for seed in range(3)])
    assert_close(fbank(waves.to(DEVICE)).cpu(), fbank(waves), rtol=1e-4, atol=1e-3)
