"""Time repeated runs with PyTorch's timer, and measure the rate of matrix products."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch.utils.benchmark import Measurement

MATRIX_SIZES = {"cuda": 8192, "cpu": 2048}
MATRIX_S = 0.6


def measure(run: Callable[[], object], budget_s: float) -> Measurement:
    """Time a function for about ``budget_s`` seconds, after a warm-up; waits for a GPU."""
    from torch.utils.benchmark import Timer  # may log a warning about CUDA, here to the suite's log

    timer = Timer("run()", globals={"run": run}, num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=budget_s)


def summary(taken: Measurement) -> dict[str, float | int]:
    """Summarize timings for a row of results."""
    times = taken.times
    return {
        "median_s": taken.median,
        "min_s": min(times),
        "max_s": max(times),
        "timings": len(times),
    }


def matrix_rate(device: str, dtype: torch.dtype, size: int | None = None) -> float:
    """Measure the FLOP/s of square matrix products of random values (median)."""
    size = size or MATRIX_SIZES[device]
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    with torch.no_grad():
        return 2 * size**3 / measure(lambda: torch.mm(a, b, out=out), MATRIX_S).median
