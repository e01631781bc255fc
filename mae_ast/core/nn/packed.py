"""Linear layers with packed weights, for inference in bfloat16 on a CPU: (..., D) -> (..., W).

Under autocast, each forward pass converts the weights to bfloat16, and each product rearranges them
into the blocks of oneDNN's kernel. Here both happen once: the packed weights are kept for later
calls, as long as the weights do not change. They take half the memory of the float32 weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mae_ast.core.nn.precision import cpu_features, uses_bfloat16
from mae_ast.core.nn.transformer import is_compiled


@contextmanager
def packed_weights(layers: Iterable[nn.Module], precision: str) -> Iterator[None]:
    """Use packed weights in linear layers, in forward passes without gradients.

    The results are those of autocast up to rounding. Nothing changes if the precision is not
    bfloat16, on devices other than x86 CPUs with bfloat16 units, in compiled code, with gradients,
    and in layers whose weight is no plain parameter, as with pruning.

    Args:
        layers: modules that contain the linear layers.
        precision: as in :func:`mae_ast.core.nn.precision.compute_in`.
    """
    # A layer that was compiled with one forward would be recompiled with another.
    parts = (part for layer in layers if not is_compiled(layer) for part in layer.modules())
    linears = [part for part in parts if type(part) is nn.Linear and _is_suitable(part, precision)]
    for linear in linears:
        linear.forward = partial(_forward, linear, _packed(linear))  # type: ignore[method-assign]
    try:
        yield
    finally:
        for linear in linears:
            vars(linear).pop("forward", None)


class _Packed:
    """Weights of a linear layer in oneDNN's layout, and a projection that shows changes of them."""

    def __init__(self, weight: Tensor, projection: Tensor) -> None:
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.bfloat16())
        self.projection = projection


# Not an attribute of the layer: packed weights can be neither copied nor saved.
_kept: WeakKeyDictionary[nn.Linear, _Packed] = WeakKeyDictionary()


def _packed(linear: nn.Linear) -> _Packed:
    """Return the packed weights of a layer: the kept ones, unless its weights have changed.

    The weights are compared by their product with a fixed vector, since changes of ``weight.data``
    do not increment a tensor's version.
    """
    weight = linear.weight.detach()
    projection = weight @ _vector(weight.shape[1])
    packed = _kept.get(linear)
    if packed is None or not torch.equal(packed.projection, projection):
        packed = _kept[linear] = _Packed(weight, projection)
    return packed


@lru_cache
def _vector(size: int) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(0)
    return torch.randn(size, generator=generator, dtype=torch.float32, device="cpu")


def _forward(linear: nn.Linear, packed: _Packed, x: Tensor) -> Tensor:
    in_autocast = torch.is_autocast_enabled("cpu")
    if torch.is_grad_enabled() or not in_autocast or torch.compiler.is_compiling():
        return F.linear(x, linear.weight, linear.bias)
    x, bias = x.bfloat16(), linear.bias.detach().bfloat16()
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed.weight, bias, "none", [], "")
    return out


def _is_suitable(linear: nn.Linear, precision: str) -> bool:
    weight = linear.weight
    return (
        type(weight) is nn.Parameter  # neither quantised nor computed by a hook, as in pruning
        and weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and linear.bias is not None
        and uses_bfloat16(precision, weight)
        and "forward" not in vars(linear)  # replaced by somebody else
        and _has_kernel()
    )


@lru_cache
def _has_kernel() -> bool:
    features = cpu_features()
    has_units = features.get("amx_bf16", False) or features.get("avx512_bf16", False)
    names = ("_reorder_linear_weight", "_linear_pointwise")
    return bool(
        has_units
        and torch.backends.mkldnn.is_available()
        and all(hasattr(torch.ops.mkldnn, name) for name in names)
    )
