"""Time repeated runs, and measure the rate of matrix products on a device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

CHUNK_S = 0.1  # minimum length of a timing: makes clock resolution and synchronization negligible
MATRIX_SIZES = {"cuda": 8192, "cpu": 2048}
MATRIX_S = 0.6


def seconds_of(
    run: Callable[[], object], device: str, budget_s: float, warm_up: int = 2, max_timings: int = 15
) -> list[float]:
    """Time a function several times, in seconds per run.

    Args:
        run: function to time.
        device: device it runs on.
        budget_s: start no further timing after this time, in seconds; at least two are taken.
        warm_up: number of runs before the first timing.
        max_timings: maximum number of timings.
    """
    for _ in range(warm_up):
        once = _timed(run, device, 1)
    runs = max(1, round(CHUNK_S / max(once, 1e-9))) if once < CHUNK_S else 1
    runs = min(runs, 10_000)
    end = time.perf_counter() + budget_s
    taken: list[float] = []
    while len(taken) < 2 or (time.perf_counter() < end and len(taken) < max_timings):
        taken.append(_timed(run, device, runs))
    return taken


def summary(taken: list[float]) -> dict[str, float | int]:
    """Summarize timings for a row of results."""
    return {
        "median_s": statistics.median(taken),
        "min_s": min(taken),
        "max_s": max(taken),
        "timings": len(taken),
    }


def matrix_rate(device: str, dtype: torch.dtype, size: int | None = None) -> float:
    """Measure the FLOP/s of square matrix products of random values (median)."""
    size = size or MATRIX_SIZES[device]
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    with torch.no_grad():
        taken = seconds_of(lambda: torch.mm(a, b, out=out), device, MATRIX_S)
    return 2 * size**3 / statistics.median(taken)


def synchronize(device: str) -> None:
    """Wait until the device has finished its work."""
    if device == "cuda":
        torch.cuda.synchronize()


def _timed(run: Callable[[], object], device: str, runs: int) -> float:
    synchronize(device)
    begin = time.perf_counter()
    for _ in range(runs):
        run()
    synchronize(device)
    return (time.perf_counter() - begin) / runs
