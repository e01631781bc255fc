"""Precision: bfloat16 on request, or if the device supports it in hardware."""

from __future__ import annotations

import pytest
import torch

from mae_ast.core.nn import precision
from mae_ast.core.nn.precision import compute_in, has_bfloat16_units


@pytest.fixture
def cpu_with(monkeypatch):
    """Return a function that simulates a CPU with the given features."""

    def cpu_with(**features):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
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
