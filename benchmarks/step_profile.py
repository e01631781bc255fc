"""Where the time of a training step goes, and what it cannot go below.

    python benchmarks/step_profile.py

The step of ``step_against_reference.py``: forward and backward of the 12-layer patch model on 4
clips of 10 s. Each operator is timed by itself; matrix products, attention's included, are set
beside what the counted operations take at the rate of square matrix products that the same process
reaches. What else there is passes over memory.

torch's profiler would not do: what it keeps of each operator lies between the blocks that tensors
free, so that large ones are taken from new memory, whose pages the kernel has to clear first.
Writing a weight's gradient then takes ten times as long as it does.
"""

from __future__ import annotations

import argparse
import json
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
from mae_ast.bench.work import split, step_work
from mae_ast.core.models.config import MaeAstConfig

CASES = [(0.0, "float32"), (0.0, "bfloat16"), (0.1, "float32"), (0.1, "bfloat16")]
# Operators by what they are; a name is looked for from the beginning.
KINDS = {
    "matrix products": ("mm", "addmm", "bmm", "baddbmm", "_scaled_dot_product"),
    "copies and casts": ("copy_", "_to_copy", "clone"),
    "softmax": ("_softmax", "_log_softmax", "logsumexp"),
    "GELU": ("gelu",),
    "layer norm": ("native_layer_norm",),
    "dropout's draws": ("random_", "bernoulli_", "uniform_", "native_dropout"),
}
OTHER = "all else"


class Timed(TorchDispatchMode):
    """While it is entered, adds up what operators take, in ``seconds`` by kind."""

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
    """What an operator of that name is."""
    for kind, beginnings in KINDS.items():
        if name.startswith(beginnings):
            return kind
    return OTHER


def profiled(dropout: float, precision: str, steps: int) -> tuple[float, dict[str, float]]:
    """Seconds of a step, and shares of it by kind of operator, of steps in which each is timed."""
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
    """Profile all cases; a table and JSON, printed and written."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=5, help="timed steps of each case")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the result")
    arguments = parser.parse_args()
    report = Report(
        "What bounds a step of MAE-AST, CPU",
        "12 + 2 layers of width 768, 16 x 16 patches, 75 % hidden, 4 clips of 10 s; masks, "
        "forward, 10 MSE +\nInfoNCE, backward; layerdrop 0. 'Products alone': the counted "
        "operations at the rate of square matrix\nproducts (2048) measured in the same process. "
        "Shares are of steps in which each operator is timed.",
    )
    heads = ("dropout", "in", "a step (s)", "products alone (s)", "matrix rate (GFLOP/s)")
    report.say(f"| {' | '.join((*heads, *KINDS, OTHER))} |")
    report.say("| --- " * (len(heads) + len(KINDS) + 1) + "|")
    config = MaeAstConfig(random_mask_prob=RATIO)
    results = []
    for dropout, precision in CASES:
        bfloat16 = precision == "bfloat16"
        work = step_work(config, split(config, "chunk_mask", 160_000), bfloat16)
        dtype = torch.bfloat16 if bfloat16 else torch.float32
        rate = matrix_rate("cpu", dtype)
        seconds, shares = profiled(dropout, precision, arguments.steps)
        rate = max(rate, matrix_rate("cpu", dtype))  # a shared machine may have been slow
        bound = BATCHES["cpu"] * work.flops / rate
        row = [str(dropout), precision, f"{seconds:.2f}", f"{bound:.2f}", f"{rate / 1e9:.0f}"]
        report.say(f"| {' | '.join((*row, *(f'{share:.1%}' for share in shares.values())))} |")
        results.append(
            {
                "dropout": dropout,
                "precision": precision,
                "step_s": seconds,
                "products_s": bound,
                "matrix_flops_per_s": rate,
                "shares": shares,
            }
        )
    report.say(f"\n```json\n{json.dumps(results)}\n```")
    report.write("step_profile", arguments.results)


if __name__ == "__main__":
    main()
