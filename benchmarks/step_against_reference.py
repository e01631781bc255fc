"""Forward + backward of the 12-layer patch model, ours against the reference implementation.

    python benchmarks/step_against_reference.py --reference PATH

PATH is a checkout of github.com/AlanBaade/MAE-AST-Public. Its package has our package's name, so
each side runs in a process of its own; the two take turns, and the ratio is taken pair by pair.

4 clips of 10 s (998 frames of log-mel noise), 75 % chunk masks, layerdrop 0, loss 10 MSE + InfoNCE.
The reference draws its masks inside the step; ours are drawn inside the timing as well.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from datetime import date
from types import SimpleNamespace

from measuring import Side, hardware, serve

BATCH, FRAMES, RATIO = 4, 998, 0.75
CASES = [  # (dropout, our precision): against the reference's float32 with the same dropout
    (0.0, "float32"),
    (0.0, "bfloat16"),
    (0.1, "float32"),
    (0.1, "bfloat16"),
]


def our_step(dropout: float, precision: str) -> Callable[[], float]:
    """A function that runs a step and returns its loss."""
    import torch
    from step_of_systems import masked_loss

    from mae_ast.allocator import keep_freed_memory
    from mae_ast.core.config import MaeAstConfig
    from mae_ast.core.mae_ast import MaeAst

    keep_freed_memory()  # as our task does on a CPU
    config = MaeAstConfig(
        dropout=dropout,
        attention_dropout=dropout,
        dropout_input=dropout,
        random_mask_prob=RATIO,
        precision=precision,
    )
    model = MaeAst(config).train()
    source = torch.randn(BATCH, FRAMES, 128)

    def step() -> float:
        loss = masked_loss(model, source)
        loss.backward()
        model.zero_grad(set_to_none=True)
        return loss.item()

    return step


def reference_step(folder: str, dropout: float) -> Callable[[], float]:
    """The same for the reference's model and criterion."""
    sys.path.insert(0, folder)
    import torch
    from mae_ast.criterions.mae_ast_criterion import MAE_AST_Criterion

    from mae_ast.models.mae_ast import MAE_AST, MAE_AST_Config

    config = MAE_AST_Config(
        enc_sine_pos=True,
        dec_sine_pos=True,
        feature_grad_mult=0.1,
        dropout=dropout,
        attention_dropout=dropout,
        dropout_input=dropout,
        random_mask_prob=RATIO,
    )
    task = SimpleNamespace(mask_type="chunk_mask", feature_dim=128, feature_type="fbank")
    model = MAE_AST(config, task).train()
    criterion = MAE_AST_Criterion(task, 10.0, 1.0)
    source = torch.randn(BATCH, FRAMES, 128)
    padding = torch.zeros(BATCH, FRAMES, dtype=torch.bool)
    sample = {
        "id": torch.arange(BATCH),
        "net_input": {"source": source, "padding_mask": padding},
    }

    def step() -> float:
        loss, _, _ = criterion(model, sample)
        loss.backward()
        model.zero_grad(set_to_none=True)
        return loss.item()

    return step


def main() -> None:
    """Compare all cases and print a table and JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reference", required=True, help="checkout of the reference")
    parser.add_argument("--pairs", type=int, default=13)
    parser.add_argument("--serve", choices=("ours", "reference"), help=argparse.SUPPRESS)
    parser.add_argument("--dropout", type=float, default=0.0, help=argparse.SUPPRESS)
    parser.add_argument("--precision", default="float32", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve == "ours":
        serve(our_step(arguments.dropout, arguments.precision))
        return
    if arguments.serve:
        serve(reference_step(arguments.reference, arguments.dropout))
        return
    print(f"{date.today()}, {hardware()}")
    print("| dropout | ours in | reference (s) | ours (s) | ratio, median (min to max) |")
    print("| --- | --- | --- | --- | --- |")
    results = []
    for dropout, precision in CASES:
        command = [sys.executable, __file__, "--reference", arguments.reference]
        command += ["--dropout", str(dropout), "--precision", precision, "--serve"]
        reference, ours = Side([*command, "reference"]), Side([*command, "ours"])
        pairs = [(reference.step(), ours.step()) for _ in range(arguments.pairs)]
        reference.close()
        ours.close()
        ratios = [theirs / mine for theirs, mine in pairs]
        seconds = [statistics.median(side) for side in zip(*pairs, strict=True)]
        print(
            f"| {dropout} | {precision} | {seconds[0]:.2f} | {seconds[1]:.2f} | "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |",
            flush=True,
        )
        results.append({"dropout": dropout, "precision": precision, "pairs": pairs})
    print(json.dumps(results))


if __name__ == "__main__":
    main()
