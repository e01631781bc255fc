"""Compare time and memory of Audio-MAE's local and global decoders, on clips of 10 to 60 s.

    python scripts/benchmarks/local_attention.py

A step is the decoder's forward and backward pass on all patches of a clip (496, 1,496 and 2,992
of 16 x 16): 16 layers of width 512 with 16 heads, as published. The local decoder attends within
windows of 4 x 4 patches, shifted by 2 along time in every second layer. On a CPU, each case runs in
its own process and memory is the peak of that process; on a GPU it is the maximum that torch
allocated. Writes a table, the exponent by which time grows with clip length, and a plot.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from measuring import RESULTS, Report, Side, serve
from torch import nn

from mae_ast.core.frontend.fbank import num_frames
from mae_ast.core.models.config import WINDOW, AudioMaeConfig
from mae_ast.core.nn.window_attention import GridTransformer

KINDS = ("global", "local")
SECONDS = (10, 30, 60)
SAMPLE_RATE = 16_000


def grid_of(seconds: int) -> tuple[int, int]:
    """Return the number of 16 x 16 patches along time and along mel."""
    shape = AudioMaeConfig().patch_shape
    return shape.grid(num_frames(seconds * SAMPLE_RATE))


def decoder_step(
    kind: str, seconds: int, clips: int, layers: int, device: str, precision: str
) -> Callable[[], None]:
    """Return a function that runs the decoder forward and backward."""
    torch.manual_seed(0)
    config = AudioMaeConfig(decoder_attention=kind, decoder_layers=layers)
    width = config.decoder_embed_dim
    decoder = GridTransformer(
        config.shifts,
        WINDOW,
        width,
        config.decoder_ffn_embed_dim,
        config.decoder_attention_heads,
        config.layer_norm_eps,
    ).to(device)
    grid = grid_of(seconds)
    tokens = torch.randn(clips, math.prod(grid), width, device=device)
    head = nn.Linear(width, config.patch_shape.dim).to(device)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16"):
            loss = head(decoder(tokens, grid)).float().square().mean()
        loss.backward()
        decoder.zero_grad(set_to_none=True)
        if device == "cuda":
            torch.cuda.synchronize()

    return step


def measure_in_process(step: Callable[[], None], turns: int) -> tuple[float, float]:
    """Return seconds per step and maximum GiB allocated, on a GPU."""
    step()
    torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(turns):
        begin = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds), torch.cuda.max_memory_allocated() / 2**30


def measure_in_subprocess(arguments: list[str], turns: int) -> tuple[float, float]:
    """Return seconds per step and peak memory of the process in GiB, on a CPU."""
    side = Side([sys.executable, __file__, "--serve", *arguments])
    seconds = statistics.median(side.step() for _ in range(turns))
    return seconds, side.close()


def main() -> None:
    """Measure all cases, print and write the table, and plot."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--turns", type=int, default=5, help="timed steps of each case")
    parser.add_argument("--clips", type=int, default=1, help="clips per step")
    parser.add_argument("--layers", type=int, default=16, help="layers of the decoder")
    parser.add_argument(
        "--seconds", type=int, nargs="+", default=SECONDS, help="lengths of the clips"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="device to run on")
    parser.add_argument(
        "--precision",
        choices=("float32", "bfloat16"),
        default="float32",
        help="dtype of matrix products",
    )
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="folder to write the result to"
    )
    parser.add_argument("--serve", nargs=6, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        kind, seconds, clips, layers, device, precision = arguments.serve
        serve(decoder_step(kind, int(seconds), int(clips), int(layers), device, precision))
        return
    report = Report(
        f"Audio-MAE's local decoder against the global one, {arguments.device}",
        f"{arguments.layers} layers of width 512, 16 heads, forward and backward on "
        f"{arguments.clips} clip(s), {arguments.precision}; median of {arguments.turns} steps.\n"
        "Local: windows of 4 x 4 patches, shifted by 2 along time in every second layer.",
    )
    report.add(
        "| decoder | clip (s) | patches | step (s) | relative to the shortest | peak (GiB) |"
    )
    report.add("| --- " * 6 + "|")
    results: dict[str, list[tuple[float, float]]] = {}
    for kind in KINDS:
        for seconds in arguments.seconds:
            sizes = (kind, seconds, arguments.clips, arguments.layers)
            options = (arguments.device, arguments.precision)
            if arguments.device == "cuda":
                measured = measure_in_process(decoder_step(*sizes, *options), arguments.turns)
            else:
                measured = measure_in_subprocess([*map(str, sizes), *options], arguments.turns)
            results.setdefault(kind, []).append(measured)
            report.add(
                f"| {kind} | {seconds} | {math.prod(grid_of(seconds))} | {measured[0]:.3f} | "
                f"{measured[0] / results[kind][0][0]:.2f} | {measured[1]:.2f} |"
            )
    longest, shortest = max(arguments.seconds), min(arguments.seconds)
    for kind, values in results.items() if longest > shortest else ():
        measured_at = dict(zip(arguments.seconds, values, strict=True))
        ratio = measured_at[longest][0] / measured_at[shortest][0]
        exponent = math.log(ratio) / math.log(longest / shortest)
        report.add(f"\n{kind}: time grows with clip length to the power of {exponent:.2f}.")
    record = {"seconds": list(arguments.seconds), **results}
    path = report.write("local_attention", arguments.results, record)
    plot(results, arguments.seconds, path.with_suffix(".png"))
    print(f"plot: {path.with_suffix('.png')}")


def plot(results: dict[str, list[tuple[float, float]]], seconds: list[int], path: Path) -> None:
    """Plot time and memory over clip length, side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, index, label in zip(axes, (0, 1), ("step (s)", "peak memory (GiB)"), strict=True):
        for kind, values in results.items():
            axis.plot(seconds, [value[index] for value in values], marker="o", label=kind)
        axis.set(xlabel="clip length (s)", ylabel=label, xlim=(0, None), ylim=(0, None))
        axis.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
