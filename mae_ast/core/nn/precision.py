"""Which number format the transformers compute in; parameters and losses stay in float32."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache

import torch
from torch import Tensor

PRECISIONS = ("auto", "float32", "bfloat16")


def compute_in(precision: str, weight: Tensor) -> AbstractContextManager[object]:
    """A context for the forward pass of a model with this ``weight``.

    Args:
        precision: "bfloat16": under autocast; "float32": not; "auto": under autocast where the
            weight's device has matrix units for it. Where the weight itself is in half precision,
            whoever made it so has decided.
        weight: any of the model's.
    """
    kind = weight.device.type
    wanted = precision == "bfloat16" or (precision == "auto" and has_bfloat16_units(kind))
    if wanted and weight.dtype == torch.float32:
        return torch.autocast(kind, dtype=torch.bfloat16)
    return nullcontext()  # whatever the trainer has chosen


@lru_cache
def has_bfloat16_units(device_type: str) -> bool:
    """Whether a kind of device multiplies bfloat16 matrices in hardware.

    A processor that does not (no AMX, no AVX-512 BF16) can take a hundred times as long as in
    float32.
    """
    if device_type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device_type == "cpu":
        features = torch.cpu.get_capabilities()
        return any(features.get(name, False) for name in ("amx_bf16", "avx512_bf16", "bf16"))
    return False
