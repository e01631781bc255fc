"""Profile a training step by kind of operator, and compare with the matrix-product bound.

    python scripts/benchmarks/step_profile.py

The step is that of ``step_against_reference.py``: forward and backward of the 12-layer patch model
on 4 clips of 10 s. Each operator is timed separately. The bound is the time of all counted matrix
products, attention included, at the rate of square matrix products in the same process.

torch's profiler is not used because its records fragment the heap: large tensors are then allocated
from new pages, which the kernel has to clear first, and writing a weight's gradient appears ten
times slower than it is.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from measuring import RESULTS, Report
from step_against_reference import BATCHES, RATIO, our_step
from torch.utils._python_dispatch import TorchDispatchMode

from mae_ast.bench.stopwatch import matrix_rate
from mae_ast.bench.work import count_flops
from mae_ast.core.models.config import MaeAstConfig

CASES = [(0.0, "float32"), (0.0, "bfloat16"), (0.1, "float32"), (0.1, "bfloat16")]
# Operators by kind: prefixes of their names; the first match counts.
KINDS = {
    "matrix products": ("mm", "addmm", "bmm", "baddbmm", "_scaled_dot_product"),
    "copies and casts": ("copy_", "_to_copy", "clone"),
    "softmax": ("_softmax", "_log_softmax", "logsumexp"),
    "GELU": ("gelu",),
    "layer norm": ("native_layer_norm",),
    "random numbers of dropout": ("random_", "bernoulli_", "uniform_", "native_dropout"),
}
OTHER = "other"


class Timed(TorchDispatchMode):
    """Context that sums the time of operators by kind, in ``seconds``."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: Counter[str] = Counter()

    def __torch_dispatch__(
        self,
        operator: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        begin = time.perf_counter()
        result = operator(*args, **(kwargs or {}))
        self.seconds[kind_of(operator.overloadpacket.__name__)] += time.perf_counter() - begin
        return result


def kind_of(name: str) -> str:
    """Return the kind of an operator, given its name."""
    for kind, prefixes in KINDS.items():
        if name.startswith(prefixes):
            return kind
    return OTHER


def profiled(dropout: float, precision: str, steps: int) -> tuple[float, dict[str, float]]:
    """Return seconds per step, and fractions of it by kind of operator.

    The fractions are measured on other steps, since timing each operator slows a step down.
    """
    step = our_step(dropout, precision)
    with Timed():
        step()
    seconds, spent, total = [], Counter[str](), 0.0
    for _ in range(steps):
        begin = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        with Timed() as timed:
            step()
        total += time.perf_counter() - begin
        spent += timed.seconds
    spent[OTHER] += total - sum(spent.values())  # Python between operators
    return statistics.median(seconds), {kind: spent[kind] / total for kind in (*KINDS, OTHER)}


def main() -> None:
    """Profile all cases; print and write a table and JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=5, help="timed steps of each case")
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="folder to write the result to"
    )
    arguments = parser.parse_args()
    report = Report(
        "Profile of a step of MAE-AST, CPU",
        "12 + 2 layers of width 768, 16 x 16 patches, 75 % masked, 4 clips of 10 s; masks, "
        "forward, 10 MSE +\nInfoNCE, backward; layerdrop 0. Products only: the counted matrix "
        "products at the rate of square ones\n(2048) measured in the same process. Fractions are "
        "of steps in which each operator is timed.",
    )
    heads = ("dropout", "precision", "step (s)", "products only (s)", "matrix rate (GFLOP/s)")
    report.add(f"| {' | '.join((*heads, *KINDS, OTHER))} |")
    report.add("| --- " * (len(heads) + len(KINDS) + 1) + "|")
    flops = count_flops(MaeAstConfig(random_mask_prob=RATIO), "chunk_mask", 160_000)
    results = []
    for dropout, precision in CASES:
        dtype = getattr(torch, precision)
        rate = matrix_rate("cpu", dtype)
        seconds, fractions = profiled(dropout, precision, arguments.steps)
        rate = max(rate, matrix_rate("cpu", dtype))  # other load may have slowed the first
        bound = BATCHES["cpu"] * flops / rate
        row = [str(dropout), precision, f"{seconds:.2f}", f"{bound:.2f}", f"{rate / 1e9:.0f}"]
        report.add(f"| {' | '.join((*row, *(f'{value:.1%}' for value in fractions.values())))} |")
        results.append(
            {
                "dropout": dropout,
                "precision": precision,
                "step_s": seconds,
                "products_s": bound,
                "matrix_flops_per_s": rate,
                "fractions": fractions,
            }
        )
    report.write("step_profile", arguments.results, results)


if __name__ == "__main__":
    main()
