"""Compare time and peak memory of a training step of each system, at full width.

    python scripts/benchmarks/step_of_systems.py

A step consists of masks, forward, losses, backward and AdamW, on 4 clips of 10 s (998 frames of
log-mel noise, 496 patches of 16 x 16), without dropout and layerdrop. 12 layers of width 768:

    MAE-AST            2 decoder layers; 75 % masked in chunks; 10 MSE + InfoNCE
    SSAST              both losses from one pass; 400 of 512 masked, that is 388 of the 496
    SSAST, two passes  the same, with one pass through the encoder per loss
    Audio-MAE          16 decoder layers of width 512, local attention; 80 % masked at random; MSE
    Audio-MAE, global  the same with global attention in the decoder
    AST                supervised, no masks: 1,188 overlapping patches, 527 classes

SSAST's implementation zero-pads clips to 1,024 frames, which makes a step slower; here, as in the
preset ``config/pretrain/ssast_patch.yaml``, its input has the same frames as MAE-AST's.

Each system runs in its own process and alternates with MAE-AST; ratios are taken between steps of
the same turn.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measuring import RESULTS, Report, Side, ratios_of, serve
from torch import Tensor
from torch.nn import functional as F

from mae_ast.bench.work import pretraining_loss
from mae_ast.core.frontend.masking import chunk_mask, random_mask
from mae_ast.core.models import registry
from mae_ast.core.models.audio_mae import AudioMae
from mae_ast.core.models.config import AstConfig, AudioMaeConfig, MaeAstConfig, SsastConfig
from mae_ast.core.nn.malloc import keep_freed_memory

BATCH, FRAMES, CLASSES = 4, 998, 527
STRIDE = 10  # stride of AST's patches along time and mel
SYSTEMS: dict[str, Any] = {
    "MAE-AST": MaeAstConfig(dropout=0.0, attention_dropout=0.0),
    "SSAST": SsastConfig(),
    "SSAST, two passes": SsastConfig(two_pass=True),
    "Audio-MAE": AudioMaeConfig(),
    "Audio-MAE, global": AudioMaeConfig(decoder_attention="global"),
    "AST": AstConfig(
        num_classes=CLASSES, ast_kernel_stride_chan=STRIDE, ast_kernel_stride_time=STRIDE
    ),
}
FIRST = "MAE-AST"
PRECISIONS = ("float32", "bfloat16")


def training_step(system: str, precision: str) -> Callable[[], float]:
    """Return a function that runs a training step and returns its loss."""
    torch.manual_seed(0)
    keep_freed_memory()  # as training does on a CPU
    config = dataclasses.replace(SYSTEMS[system], precision=precision)
    model = registry.SYSTEMS[registry.system_name(config)].network(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    source = torch.randn(BATCH, FRAMES, 128)
    loss_of = supervised_loss if system == "AST" else masked_loss

    def step() -> float:
        loss = loss_of(model, source)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def masked_loss(model: Any, source: Tensor) -> Tensor:
    """Return the pretraining loss on log-mel (B, T, 128), with newly drawn masks."""
    grid = model.patch_shape.grid(source.shape[1])
    strategy = random_mask if isinstance(model, AudioMae) else chunk_mask
    mask = strategy(len(source), grid, model.config.random_mask_prob)
    return pretraining_loss(model, source, mask.to(source.device))


def supervised_loss(model: Any, source: Tensor) -> Tensor:
    """Return the binary cross-entropy on log-mel (B, T, 128), as on AudioSet."""
    logits = model(source)
    return F.binary_cross_entropy_with_logits(logits, torch.zeros_like(logits))


def main() -> None:
    """Compare the systems in both precisions; print and write a table and JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--turns", type=int, default=13, help="timed steps of each system")
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="folder to write the result to"
    )
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(training_step(*arguments.serve))
        return
    report = Report(
        "A training step of each of the four systems, CPU",
        "12 layers of width 768 (MAE-AST: 12 + 2; Audio-MAE: 12 + 16 of width 512), 16 x 16 "
        "patches, 4 clips of\n10 s; forward, losses, backward, AdamW; no dropout. MAE-AST masks "
        "372 of a clip's 496 patches (75 %),\nSSAST 388 (400 of 512), Audio-MAE 397 (80 %). AST "
        "masks none and has 1,188 overlapping patches.\n"
        f"{arguments.turns} steps of each system, alternating with MAE-AST's; ratios are taken "
        "within a turn. Peak memory is\nthat of each system's process.",
    )
    report.add(
        "| precision | system | step (s) | relative to MAE-AST, median (min to max) | peak (GiB) |"
    )
    report.add("| --- | --- | --- | --- | --- |")
    results = []
    for precision in PRECISIONS:
        for system in SYSTEMS:
            names = (FIRST,) if system == FIRST else (FIRST, system)
            sides = [Side([sys.executable, __file__, "--serve", name, precision]) for name in names]
            turns = [[side.step() for side in sides] for _ in range(arguments.turns)]
            peak = [side.close() for side in sides][-1]
            seconds = statistics.median(turn[-1] for turn in turns)
            ratios = ratios_of(turn[-1] / turn[0] for turn in turns)
            report.add(f"| {precision} | {system} | {seconds:.2f} | {ratios} | {peak:.2f} |")
            results.append(
                {"precision": precision, "system": system, "turns": turns, "peak_gib": peak}
            )
    report.write("step_of_systems", arguments.results, results)


if __name__ == "__main__":
    main()
