"""Repeated timing, and the rate of matrix products that a device reaches."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

CHUNK_S = 0.1  # what is timed at once, so that neither clocks nor waiting for the device count
MATRIX_SIZES = {"cuda": 8192, "cpu": 2048}
MATRIX_S = 0.6


def seconds_of(
    run: Callable[[], object], device: str, budget_s: float, warm_up: int = 2, most: int = 15
) -> list[float]:
    """Seconds of a run, several times.

    Args:
        run: what is timed.
        device: it runs on.
        budget_s: no new timing begins after so long; there are two at least.
        warm_up: runs before.
        most: timings.
    """
    for _ in range(warm_up):
        once = _timed(run, device, 1)
    runs = max(1, round(CHUNK_S / max(once, 1e-9))) if once < CHUNK_S else 1
    runs = min(runs, 10_000)
    end = time.perf_counter() + budget_s
    taken: list[float] = []
    while len(taken) < 2 or (time.perf_counter() < end and len(taken) < most):
        taken.append(_timed(run, device, runs))
    return taken


def summary(taken: list[float]) -> dict[str, float | int]:
    """For a row of results."""
    return {
        "median_s": statistics.median(taken),
        "min_s": min(taken),
        "max_s": max(taken),
        "timings": len(taken),
    }


def matrix_rate(device: str, dtype: torch.dtype, size: int | None = None) -> float:
    """FLOP/s of square matrix products of random values; the median over half a second."""
    size = size or MATRIX_SIZES[device]
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    with torch.no_grad():
        taken = seconds_of(lambda: torch.mm(a, b, out=out), device, MATRIX_S)
    return 2 * size**3 / statistics.median(taken)


def synchronize(device: str) -> None:
    """Wait until the device has done what it was asked for."""
    if device == "cuda":
        torch.cuda.synchronize()


def _timed(run: Callable[[], object], device: str, runs: int) -> float:
    synchronize(device)
    begin = time.perf_counter()
    for _ in range(runs):
        run()
    synchronize(device)
    return (time.perf_counter() - begin) / runs
