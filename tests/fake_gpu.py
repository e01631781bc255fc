"""A GPU without hardware: fake tensors on "cuda", which have all but values.

An operation that needs a value on the host (``item``, a condition, ``nonzero``), that copies
between the devices, or that gets tensors of both, raises an error. Kernels are not run: values are
compared on a GPU only, see ``tests/gpu``.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from mae_ast.core.frontend.fbank import WINDOW_POWERS, filterbank
from mae_ast.core.nn.precision import has_bfloat16_units

DEVICE = torch.device("cuda", 0)
CAPABILITY = (9, 0)  # of an H100

M = TypeVar("M", bound=nn.Module)


@contextmanager
def fake_gpu() -> Iterator[None]:
    """Let the tensors of this context be fake, and those on "cuda" usable."""
    with (
        patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False),
        patch("torch.cuda.is_bf16_supported", lambda including_emulation=True: True),
        patch("torch.cuda.get_device_capability", lambda device=None: CAPABILITY),
        FakeTensorMode(),
        _empty_caches(),
    ):
        for window in WINDOW_POWERS:
            filterbank(DEVICE, window)  # copied to a device once
        yield


@contextmanager
def _empty_caches() -> Iterator[None]:
    """Keep what is cached of the fake GPU to this context."""
    for cached in (filterbank, has_bfloat16_units):
        cached.cache_clear()
    try:
        yield
    finally:
        for cached in (filterbank, has_bfloat16_units):
            cached.cache_clear()


def on_gpu(values: Any) -> Any:
    """Return fake copies on the GPU of all tensors in nested tuples, lists and dictionaries."""
    return tree_map(lambda x: _copy(x) if isinstance(x, Tensor) else x, values)


def move(model: M) -> M:
    """Replace the parameters and buffers of a model by fake copies on the GPU, in place."""
    for module in model.modules():
        for name, p in module._parameters.items():
            if p is not None:
                module._parameters[name] = nn.Parameter(_copy(p), p.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = _copy(buffer)
    return model


def _copy(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=DEVICE)


class NoCopies(TorchDispatchMode):
    """Raise an error if values are copied between the GPU and the host."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        inputs = _device_types((args, kwargs))
        is_copy = func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_)
        if "cuda" in inputs and _device_types(out) - {"cuda"}:
            raise AssertionError(f"{func} copies to the host")
        if is_copy and "cpu" in inputs and "cuda" in _device_types((out, args)):
            raise AssertionError(f"{func} copies from the host")
        return out


def _device_types(values: Any) -> set[str]:
    return {x.device.type for x in tree_leaves(values) if isinstance(x, Tensor)}


@torch.no_grad()
def backward(loss: Tensor) -> None:
    """Compute gradients as ``loss.backward()`` does, whose engine needs the hardware."""
    waiting: Counter[Any] = Counter()  # of each node, the inputs whose gradients are missing
    seen, todo = {loss.grad_fn}, [loss.grad_fn]
    while todo:
        for node, _ in todo.pop().next_functions:
            waiting[node] += 1
            if node is not None and node not in seen:
                seen.add(node)
                todo.append(node)
    grads: dict[Any, dict[int, Tensor]] = defaultdict(dict)  # of each node's outputs
    grads[loss.grad_fn][loss.output_nr] = torch.ones_like(loss)
    ready = [loss.grad_fn]
    while ready:
        node = ready.pop()
        found = _run(node, grads.pop(node, {}))
        for (before, number), grad in zip(node.next_functions, found, strict=True):
            if before is not None and grad is not None:
                output = before._input_metadata[number]
                grad = grad.sum_to_size(output.shape).to(output.dtype)
                known = grads[before].get(number)
                grads[before][number] = grad if known is None else known + grad
            waiting[before] -= 1
            if before is not None and not waiting[before]:
                ready.append(before)


def _run(node: Any, grads: dict[int, Tensor]) -> tuple[Tensor | None, ...]:
    """Run the backward of one operation, given the gradients of its outputs."""
    if not grads:
        return (None,) * len(node.next_functions)
    outputs = enumerate(node._input_metadata)
    if callable(node):
        found = node(*(grads.get(number) for number, _ in outputs))
        return found if isinstance(found, tuple) else (found,)
    # A torch.autograd.Function: gradients are zeros by default, and those of arguments that are no
    # tensors, here the last ones, belong to no node.
    found = node.apply(
        *(
            grads.get(number, torch.zeros(x.shape, dtype=x.dtype, device=x.device))
            for number, x in outputs
        )
    )
    of_tensors, others = found[: len(node.next_functions)], found[len(node.next_functions) :]
    assert not any(isinstance(x, Tensor) for x in others)
    return tuple(of_tensors)
