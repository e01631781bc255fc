"""Packed weights: the results of autocast, kept for later calls, and never out of date."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from mae_ast.core.nn import packed
from mae_ast.core.nn.packed import packed_weights
from mae_ast.core.nn.transformer import TransformerLayer

if not packed._has_kernel():
    pytest.skip("needs an x86 CPU with bfloat16 units", allow_module_level=True)


@pytest.fixture
def layer() -> TransformerLayer:
    torch.manual_seed(0)
    return TransformerLayer(64, 128, 4).eval()


def in_bfloat16(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return layer(x)


@torch.no_grad()
def in_packed(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with packed_weights([layer], "bfloat16"):
        return in_bfloat16(layer, x)


def kept(layer: nn.Module) -> list[object]:
    return [packed._kept.get(part) for part in layer.modules() if type(part) is nn.Linear]


@pytest.mark.parametrize("tokens", [1, 7, 500])
def test_results_are_those_of_autocast(layer, tokens):
    x = torch.randn(3, tokens, 64)
    exact, expected, found = layer(x), in_bfloat16(layer, x), in_packed(layer, x)
    assert found.dtype == expected.dtype
    assert (found - exact).norm() < 1.1 * (expected - exact).norm() + 1e-4
    assert None not in kept(layer)


def test_kept_weights_are_used_until_the_weights_change(layer):
    x = torch.randn(2, 5, 64)
    in_packed(layer, x)
    before = kept(layer)
    in_packed(layer, x)
    assert kept(layer) == before
    weights = [part.weight for part in layer.modules() if type(part) is nn.Linear]
    for number, weight in enumerate(weights):  # .data: the version of the tensor does not change
        weight.data[number % len(weight), 3] += 0.01
        weight.data[:] = weight.data.roll(1, 0)
    found, expected = in_packed(layer, x), in_bfloat16(layer, x)
    assert not set(map(id, kept(layer))) & set(map(id, before))
    assert (found - expected).norm() < 0.01 * expected.norm()


def test_the_layers_are_as_before_afterwards(layer):
    x = torch.randn(2, 5, 64, requires_grad=True)
    expected = layer(x)
    with packed_weights([layer], "bfloat16"):
        assert torch.equal(layer(x), expected)  # in float32
        in_bfloat16(layer, x).sum().backward()  # with gradients
    assert layer.fc1.weight.grad is not None
    in_packed(layer, x)
    assert all("forward" not in vars(part) for part in layer.modules())
    assert torch.equal(copy.deepcopy(layer)(x), expected)
    assert torch.equal(layer(x), expected)


def test_other_layers_and_precisions_are_left_alone(layer):
    layer.fc1 = nn.Linear(64, 128, bias=False)
    layer.fc2 = nn.Linear(128, 64, dtype=torch.float16)
    layer.self_attn.k_proj.forward = layer.self_attn.k_proj.forward  # replaced by a user
    with packed_weights([layer], "bfloat16"):
        replaced = [part for part in layer.modules() if "forward" in vars(part)]
    attention = layer.self_attn
    assert replaced == [attention.k_proj, attention.v_proj, attention.q_proj, attention.out_proj]
    assert attention.k_proj not in packed._kept
    with packed_weights([layer], "float32"):
        assert [part for part in layer.modules() if "forward" in vars(part)] == [attention.k_proj]


@pytest.mark.parametrize("whole", [False, True], ids=["compute", "layer"])
def test_compiled_layers_compute_as_before_and_are_compiled_once(layer, whole):
    x = torch.randn(2, 5, 64)
    expected = in_bfloat16(layer, x)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    if whole:
        layer.compile(backend=backend)
    else:
        layer.compute = torch.compile(layer.compute, backend=backend)
    for _ in range(3):
        found = in_packed(layer, x)
    assert (found - expected).norm() < 0.01 * expected.norm()
    assert len(graphs) == 1


def test_weights_that_a_hook_computes_are_not_packed(layer):
    prune.random_unstructured(layer.fc1, "weight", amount=0.3)
    x = torch.randn(2, 5, 64)
    in_packed(layer, x)
    with torch.no_grad():
        layer.fc1.weight_orig.mul_(3)  # the hook sets .weight in the next forward pass
    found, expected = in_packed(layer, x), in_bfloat16(layer, x)
    assert (found - expected).norm() < 0.01 * expected.norm()


def test_defaults_of_torch_have_no_influence(layer):
    x = torch.randn(2, 5, 64)
    expected = in_bfloat16(layer, x)
    packed._vector.cache_clear()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            found = in_packed(layer, x)
    finally:
        torch.set_default_dtype(torch.float32)
    assert (found - expected).norm() < 0.01 * expected.norm()


@pytest.mark.parametrize("shape", [(0, 5, 64), (2, 0, 64)])
def test_a_batch_of_nothing_gives_nothing(layer, shape):
    assert in_packed(layer, torch.randn(shape)).shape == shape


def test_packed_weights_end_with_the_layer():
    gc.collect()  # layers of earlier tests
    before = len(packed._kept)
    layer = TransformerLayer(64, 128, 4).eval()  # pytest keeps what a fixture returns
    in_packed(layer, torch.randn(1, 2, 64))
    assert len(packed._kept) == before + 6
    del layer
    gc.collect()
    assert len(packed._kept) == before
