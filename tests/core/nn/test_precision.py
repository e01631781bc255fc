"""bfloat16 where it was asked for, or where the device has units for it."""

from __future__ import annotations

import pytest
import torch

from mae_ast.core.nn import precision
from mae_ast.core.nn.precision import compute_in, has_bfloat16_units


@pytest.fixture
def processor(monkeypatch):
    """Make the processor one with these features."""

    def processor(**features):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
        has_bfloat16_units.cache_clear()

    yield processor
    has_bfloat16_units.cache_clear()


def dtype_in(kind: str, weight: torch.Tensor) -> torch.dtype:
    with compute_in(kind, weight):
        return torch.nn.functional.linear(torch.ones(2, 4, dtype=weight.dtype), weight).dtype


@pytest.mark.parametrize("feature", ["amx_bf16", "avx512_bf16", "bf16"])
def test_auto_follows_the_processor(processor, feature):
    weight = torch.ones(3, 4)
    processor(avx2=True, **{feature: True})
    assert dtype_in("auto", weight) == torch.bfloat16
    processor(avx2=True, **{feature: False})
    assert dtype_in("auto", weight) == torch.float32


def test_what_is_asked_for_is_done(processor):
    weight = torch.ones(3, 4)
    processor()
    assert dtype_in("bfloat16", weight) == torch.bfloat16
    processor(amx_bf16=True)
    assert dtype_in("float32", weight) == torch.float32


@pytest.mark.parametrize("kind", precision.PRECISIONS)
def test_half_precision_weights_have_decided(processor, kind):
    processor(amx_bf16=True)
    assert dtype_in(kind, torch.ones(3, 4, dtype=torch.float16)) == torch.float16
