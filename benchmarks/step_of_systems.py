"""A training step of MAE-AST against one of SSAST, at full width: time and peak memory.

    python benchmarks/step_of_systems.py

A step is masks, forward, 10 MSE + InfoNCE, backward and AdamW, on 4 clips of 10 s (998 frames of
log-mel noise, 496 patches of 16 x 16), without dropout and layerdrop. 12 layers of width 768, chunk
masks:

    MAE-AST            2 layers more in the decoder; 75 % hidden
    SSAST              both losses from one pass; 400 of 512 hidden, that is 388 of the 496
    SSAST, two passes  the same, with a pass through the encoder for each loss

SSAST's authors fill clips up to 1,024 frames, which makes a step longer; here, as in training by
``config/pretrain/ssast_patch.yaml``, it gets the frames that MAE-AST gets.

Each runs in a process of its own, whose memory is its own too. They take turns, and ratios are
taken turn by turn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from measuring import RESULTS, Report, Side, serve
from torch import Tensor

from mae_ast.core.config import MaeAstConfig
from mae_ast.core.config_ssast import SsastConfig
from mae_ast.core.losses import info_nce_loss, reconstruction_loss
from mae_ast.core.mae_ast import MaeAst
from mae_ast.core.masking import chunk_mask
from mae_ast.core.ssast import Ssast

BATCH, FRAMES = 4, 998
SYSTEMS = ("MAE-AST", "SSAST", "SSAST, two passes")
PRECISIONS = ("float32", "bfloat16")


def training_step(system: str, precision: str) -> Callable[[], float]:
    """A function that runs a step and returns its loss."""
    torch.manual_seed(0)
    model: MaeAst | Ssast
    if system == "MAE-AST":
        model = MaeAst(MaeAstConfig(dropout=0.0, attention_dropout=0.0, precision=precision))
    else:
        model = Ssast(SsastConfig(two_pass="two passes" in system, precision=precision))
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    source = torch.randn(BATCH, FRAMES, 128)

    def step() -> float:
        loss = pretraining_loss(model, source)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def pretraining_loss(model: MaeAst | Ssast, source: Tensor) -> Tensor:
    """10 MSE + InfoNCE a masked patch of log-mel (B, T, 128), with masks drawn here."""
    grid = model.patch_shape.grid(source.shape[1])
    mask = chunk_mask(len(source), grid, model.config.random_mask_prob)
    out = model(source, None, mask.visible_ids, mask.masked_ids)
    mse = reconstruction_loss(out.reconstruction, out.target)
    info_nce = info_nce_loss(out.classification, out.target).loss
    loss: Tensor = (10 * mse + info_nce) / mask.masked_ids.numel()
    return loss


def main() -> None:
    """Compare the systems in both precisions; a table and JSON, printed and written."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--turns", type=int, default=13, help="steps of each system")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the result")
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(training_step(*arguments.serve))
        return
    report = Report(
        "A training step of MAE-AST and of SSAST, CPU",
        "12 layers of width 768 (MAE-AST: 12 + 2), 16 x 16 patches, 4 clips of 10 s; forward, 10 "
        "MSE + InfoNCE,\nbackward, AdamW; no dropout. Of a clip's 496 patches MAE-AST hides 372 "
        "(75 %), SSAST 388\n(400 of 512). "
        f"{arguments.turns} interleaved steps of each; ratios are taken turn by turn. Peak memory "
        "is\nthat of each system's own process.",
    )
    report.say(
        "| precision | system | a step (s) | over MAE-AST's, median (min to max) | peak (GiB) |"
    )
    report.say("| --- | --- | --- | --- | --- |")
    results = []
    for precision in PRECISIONS:
        sides = [
            Side([sys.executable, __file__, "--serve", system, precision]) for system in SYSTEMS
        ]
        turns = [[side.step() for side in sides] for _ in range(arguments.turns)]
        peaks = [side.close() for side in sides]
        for number, (system, peak) in enumerate(zip(SYSTEMS, peaks, strict=True)):
            seconds = [turn[number] for turn in turns]
            ratios = [turn[number] / turn[0] for turn in turns]
            report.say(
                f"| {precision} | {system} | {statistics.median(seconds):.2f} | "
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) | "
                f"{peak:.2f} |"
            )
            results.append(
                {"precision": precision, "system": system, "seconds": seconds, "peak_gib": peak}
            )
    report.say(f"\n```json\n{json.dumps(results)}\n```")
    report.write("step_of_systems", arguments.results)


if __name__ == "__main__":
    main()
