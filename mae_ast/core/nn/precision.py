"""Compute dtype of the transformers: float32 or bfloat16 autocast.

Parameters, input statistics and losses are in float32 either way.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

PRECISIONS = ("auto", "float32", "bfloat16")


def compute_in(precision: str, weight: Tensor) -> AbstractContextManager[object]:
    """Return the context manager in which to run the forward pass of a model.

    Args:
        precision: "float32": no autocast; "bfloat16": autocast to bfloat16; "auto": autocast if the
            device of ``weight`` multiplies bfloat16 matrices in hardware. A model that was cast to
            half precision keeps its own dtype.
        weight: any parameter of the model.
    """
    if uses_bfloat16(precision, weight):
        return torch.autocast(weight.device.type, dtype=torch.bfloat16)
    return nullcontext()  # float32, or the autocast that the trainer has entered


def uses_bfloat16(precision: str, weight: Tensor) -> bool:
    """Return whether :func:`compute_in` gives bfloat16 autocast; arguments as there."""
    is_chosen = precision == "bfloat16" or (
        precision == "auto" and has_bfloat16_units(weight.device.type)
    )
    return is_chosen and weight.dtype == torch.float32


def resolve_precision(precision: str, device_type: str) -> str:
    """Return the dtype of inference on a type of device, "float32" or "bfloat16".

    Args:
        precision: one of ``PRECISIONS``; "auto": bfloat16 if the device multiplies bfloat16
            matrices in hardware, else float32.
        device_type: "cpu", "cuda", ...

    Raises:
        ValueError: the precision is unknown, or bfloat16 is requested of a device that only
            emulates it, which is slower than float32.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r}; must be one of {', '.join(PRECISIONS)}")
    if precision == "bfloat16" and not has_bfloat16_units(device_type):
        raise ValueError(
            f"precision 'bfloat16': this device ({device_type}) does not multiply bfloat16 "
            "matrices in hardware, and would be slower than in 'float32'; 'auto' chooses the "
            "faster one"
        )
    if precision == "auto":
        return "bfloat16" if has_bfloat16_units(device_type) else "float32"
    return precision


@lru_cache
def has_bfloat16_units(device_type: str) -> bool:
    """Return whether a type of device multiplies bfloat16 matrices in hardware.

    A CPU that does not (no AMX, no AVX-512 BF16) can be a hundred times slower than in float32.
    """
    if device_type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device_type == "cpu":
        features = cpu_features()
        return any(features.get(name, False) for name in ("amx_bf16", "avx512_bf16", "bf16"))
    return False


def cpu_features() -> dict[str, Any]:
    """Return which instruction sets the CPU has, under torch's names."""
    if hasattr(torch.cpu, "get_capabilities"):
        return dict(torch.cpu.get_capabilities())
    cpu: Any = torch.cpu  # of torch 2.6, whose functions are private
    return {
        "amx_bf16": cpu._is_amx_tile_supported(),
        "avx512_bf16": cpu._is_avx512_bf16_supported(),
        "avx512_f": cpu._is_avx512_supported(),
        "avx2": cpu._is_avx2_supported(),
    }
