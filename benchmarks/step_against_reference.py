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
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from types import SimpleNamespace

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

    from mae_ast.core.config import MaeAstConfig
    from mae_ast.core.losses import info_nce_loss, reconstruction_loss
    from mae_ast.core.mae_ast import MaeAst
    from mae_ast.core.masking import chunk_mask

    config = MaeAstConfig(
        dropout=dropout, attention_dropout=dropout, dropout_input=dropout, precision=precision
    )
    model = MaeAst(config).train()
    source = torch.randn(BATCH, FRAMES, 128)

    def step() -> float:
        mask = chunk_mask(BATCH, config.patch_shape.grid(FRAMES), RATIO)
        out = model(source, None, mask.visible_ids, mask.masked_ids)
        mse = reconstruction_loss(out.reconstruction, out.target)
        loss = (10 * mse + info_nce_loss(out.classification, out.target).loss) / (
            mask.masked_ids.numel()
        )
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


def serve(arguments: argparse.Namespace) -> None:
    """Run a step for each line on standard input, and answer with its seconds."""
    if arguments.serve == "ours":
        step = our_step(arguments.dropout, arguments.precision)
    else:
        step = reference_step(arguments.reference, arguments.dropout)
    step()
    print("@ready", flush=True)
    for _ in sys.stdin:
        begin = time.perf_counter()
        step()
        print(f"@{time.perf_counter() - begin}", flush=True)


class Side:
    """One of the two, in its own process."""

    def __init__(self, name: str, arguments: argparse.Namespace, dropout: float, precision: str):
        command = [sys.executable, __file__, "--serve", name, "--dropout", str(dropout)]
        command += ["--precision", precision, "--reference", arguments.reference]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._answer()

    def step(self) -> float:
        """Seconds of one step."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._answer())

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("@"):
                return line[1:].strip()
        raise SystemExit("a side of the comparison failed, see above")


def main() -> None:
    """Compare all cases and print a table and JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reference", required=True, help="checkout of the reference")
    parser.add_argument("--pairs", type=int, default=13)
    parser.add_argument("--serve", choices=("ours", "reference"), help=argparse.SUPPRESS)
    parser.add_argument("--dropout", type=float, default=0.0, help=argparse.SUPPRESS)
    parser.add_argument("--precision", default="float32", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments)
        return
    import torch

    cpu = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    print(f"{date.today()}, {cpu}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print("| dropout | ours in | reference (s) | ours (s) | ratio, median (min to max) |")
    print("| --- | --- | --- | --- | --- |")
    results = []
    for dropout, precision in CASES:
        reference = Side("reference", arguments, dropout, precision)
        ours = Side("ours", arguments, dropout, precision)
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
