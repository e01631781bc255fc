"""``torch.compile`` makes one graph of a training step of every system, and of a layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from mae_ast.core.models.classifier import Classifier, HeadConfig
from mae_ast.core.models.registry import build_encoder
from mae_ast.core.nn.attention import KeyPadding
from mae_ast.core.nn.transformer import TransformerLayer
from tests.core.vits import Clips, loss_of
from tests.systems.cases import CASES
from tests.systems.test_fake_gpu import BATCHES, PRETRAINING_BATCHES

Step = Callable[..., Tensor]


def assert_one_graph(model: nn.Module, step: Step, *inputs: Any, backend: str = "eager") -> None:
    """Check that a step compiles without a graph break, and computes what it did."""
    torch.compiler.reset()
    results = []
    for each in (step, torch.compile(step, backend=backend, fullgraph=True, dynamic=False)):
        model.zero_grad()
        loss = each(*inputs)
        loss.backward()
        results.append([loss, *(p.grad for p in model.parameters() if p.grad is not None)])
    assert len(results[0]) > 1
    assert_close(results[1], results[0])


@pytest.mark.parametrize("batch", PRETRAINING_BATCHES.values(), ids=PRETRAINING_BATCHES)
@pytest.mark.parametrize(
    "name", ["mae_ast: patches", "ssast: patches", "audio_mae: local, shifted"]
)
def test_step_of_pretraining(name: str, batch: Callable[[Any], Clips]) -> None:
    model = CASES[name].build(encoder_layers=1).train()
    clips = batch(model)

    def step(source: Tensor, lengths: Tensor | None, mask: Any) -> Tensor:
        return loss_of(model(source, lengths, mask))

    assert_one_graph(model, step, clips.source, clips.lengths, clips.mask)


@pytest.mark.parametrize("name", ["mae_ast: patches", "ast: two"])
def test_step_of_fine_tuning(name: str) -> None:
    encoder = build_encoder(CASES[name].config(encoder_layers=1))
    pool = "encoder" if name == "ast: two" else "time_steps"
    model = Classifier(encoder, HeadConfig(5, pool=pool)).train()
    clips = BATCHES["padded"](encoder)

    def step(source: Tensor, lengths: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(model(source, lengths), labels)

    labels = torch.arange(len(clips.waves))
    assert_one_graph(model, step, clips.source, clips.lengths, labels)


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_layer(norm_first: bool, padded: bool) -> None:
    """The backward pass is traced, too."""
    torch.manual_seed(0)
    layer = TransformerLayer(16, 32, 2, norm_first=norm_first).train()
    x, ids = torch.randn(2, 9, 16), torch.tensor([[0, 3, 4], [1, 2, -1]])
    padding_mask = torch.arange(9) >= torch.tensor([[9], [5]])

    def step(x: Tensor, padding_mask: Tensor, ids: Tensor) -> Tensor:
        mask = KeyPadding(padding_mask) if padded else None
        return layer(layer(x, mask), mask, ids).square().mean()

    assert_one_graph(layer, step, x, padding_mask, ids, backend="aot_eager")
