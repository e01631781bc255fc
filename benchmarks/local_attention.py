"""Audio-MAE's local decoder against the global one, on clips of 10, 30 and 60 s: time and memory.

    python benchmarks/local_attention.py

A step is the decoder's forward and backward on all patches of a clip (496, 1,496 and 2,992 of
16 x 16): 16 layers of width 512 with 16 heads, as published; local are windows of 4 x 4 patches,
every second layer's shifted by 2 along time. On a processor, each kind and length runs in a process
of its own, whose memory above that of the shortest step is its own; on a GPU, memory is what torch
has allocated at most. Writes a table, a fit of how time grows with the clip, and a plot.
"""

from __future__ import annotations

import argparse
import json
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
    """Patches of 16 x 16 along time and along mel."""
    shape = AudioMaeConfig().patch_shape
    return shape.grid(num_frames(seconds * SAMPLE_RATE))


def decoder_step(
    kind: str, seconds: int, clips: int, layers: int, device: str, precision: str
) -> Callable[[], None]:
    """A function that runs the decoder forward and backward."""
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


def measure_here(step: Callable[[], None], turns: int) -> tuple[float, float]:
    """Seconds of a step, and GiB allocated at most, on a GPU."""
    step()
    torch.cuda.reset_peak_memory_stats()
    found = []
    for _ in range(turns):
        begin = time.perf_counter()
        step()
        found.append(time.perf_counter() - begin)
    return statistics.median(found), torch.cuda.max_memory_allocated() / 2**30


def measure_apart(arguments: list[str], turns: int) -> tuple[float, float]:
    """Seconds of a step, and the peak of its process in GiB, on a processor."""
    side = Side([sys.executable, __file__, "--serve", *arguments])
    seconds = statistics.median(side.step() for _ in range(turns))
    return seconds, side.close()


def main() -> None:
    """Measure all, print and write the table, draw the plot."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--turns", type=int, default=5, help="steps of each")
    parser.add_argument("--clips", type=int, default=1, help="clips of a step")
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--seconds", type=int, nargs="+", default=SECONDS, help="lengths of clips")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the result")
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
        "Local: windows of 4 x 4 patches, every second layer's shifted by 2 along time.",
    )
    report.say("| decoder | clip (s) | patches | a step (s) | over the shortest's | peak (GiB) |")
    report.say("| --- " * 6 + "|")
    found: dict[str, list[tuple[float, float]]] = {}
    for kind in KINDS:
        for seconds in arguments.seconds:
            what = (kind, seconds, arguments.clips, arguments.layers)
            how = (arguments.device, arguments.precision)
            if arguments.device == "cuda":
                measured = measure_here(decoder_step(*what, *how), arguments.turns)
            else:
                measured = measure_apart([*map(str, what), *how], arguments.turns)
            found.setdefault(kind, []).append(measured)
            report.say(
                f"| {kind} | {seconds} | {math.prod(grid_of(seconds))} | {measured[0]:.3f} | "
                f"{measured[0] / found[kind][0][0]:.2f} | {measured[1]:.2f} |"
            )
    longest, shortest = max(arguments.seconds), min(arguments.seconds)
    for kind, values in found.items():
        of = dict(zip(arguments.seconds, values, strict=True))
        power = math.log(of[longest][0] / of[shortest][0]) / math.log(longest / shortest)
        report.say(f"\n{kind}: time grows with the clip's length to the power of {power:.2f}.")
    in_full = {"seconds": list(arguments.seconds), **found}
    report.say(f"\n```json\n{json.dumps(in_full)}\n```")
    path = report.write("local_attention", arguments.results)
    plot(found, arguments.seconds, path.with_suffix(".png"))
    print(f"drawn: {path.with_suffix('.png')}")


def plot(found: dict[str, list[tuple[float, float]]], seconds: list[int], path: Path) -> None:
    """Time and memory over the clip's length, side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, place, label in zip(axes, (0, 1), ("a step (s)", "peak memory (GiB)"), strict=True):
        for kind, values in found.items():
            axis.plot(seconds, [value[place] for value in values], marker="o", label=kind)
        axis.set(xlabel="clip (s)", ylabel=label, xlim=(0, None), ylim=(0, None))
        axis.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
