"""Precision: bfloat16 on request, or if the device supports it in hardware."""

from __future__ import annotations

import pytest
import torch

from mae_ast.core.nn import precision
from mae_ast.core.nn.precision import compute_in, cpu_features, has_bfloat16_units


@pytest.fixture
def cpu_with(monkeypatch):
    """Return a function that simulates a CPU with the given features."""

    def cpu_with(**features):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features, raising=False)
        has_bfloat16_units.cache_clear()

    yield cpu_with
    has_bfloat16_units.cache_clear()


def dtype_in(kind: str, weight: torch.Tensor) -> torch.dtype:
    with compute_in(kind, weight):
        return torch.nn.functional.linear(torch.ones(2, 4, dtype=weight.dtype), weight).dtype


@pytest.mark.parametrize("feature", ["amx_bf16", "avx512_bf16", "bf16"])
def test_auto_depends_on_the_cpu_features(cpu_with, feature):
    weight = torch.ones(3, 4)
    cpu_with(avx2=True, **{feature: True})
    assert dtype_in("auto", weight) == torch.bfloat16
    cpu_with(avx2=True, **{feature: False})
    assert dtype_in("auto", weight) == torch.float32


def test_torch_2_6_tells_the_cpu_features(monkeypatch):
    known = cpu_features()
    private = {
        "_is_amx_tile_supported": "amx_bf16",
        "_is_avx512_bf16_supported": "avx512_bf16",
        "_is_avx512_supported": "avx512_f",
        "_is_avx2_supported": "avx2",
    }
    for function, name in private.items():
        has = bool(known.get(name))
        monkeypatch.setattr(torch.cpu, function, lambda has=has: has, raising=False)
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert cpu_features() == {name: bool(known.get(name)) for name in private.values()}


def test_explicit_precision_is_used(cpu_with):
    weight = torch.ones(3, 4)
    cpu_with()
    assert dtype_in("bfloat16", weight) == torch.bfloat16
    cpu_with(amx_bf16=True)
    assert dtype_in("float32", weight) == torch.float32


@pytest.mark.parametrize("kind", precision.PRECISIONS)
def test_half_precision_weights_keep_their_dtype(cpu_with, kind):
    cpu_with(amx_bf16=True)
    assert dtype_in(kind, torch.ones(3, 4, dtype=torch.float16)) == torch.float16
