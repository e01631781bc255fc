"""Compare forward + backward of the 12-layer patch model with the reference implementations.

    python scripts/benchmarks/step_against_reference.py --reference PATH --ssast PATH

The first PATH is a checkout of github.com/AlanBaade/MAE-AST-Public, the second one of
github.com/YuanGongND/ssast; either may be omitted. The former has our package name, so each
implementation runs in its own process. In each round the reference step and all our variants run
once, one after another; ratios compare steps of the same round.

4 clips of 10 s, on a GPU 32 (998 frames of log-mel noise), 75 % chunk masks, layerdrop 0, loss
10 MSE + InfoNCE. SSAST's step is its joint one, with one pass per loss and 400 masked patches of
1,024 frames. The references draw their masks inside the step; drawing ours is timed as well. On a
GPU the references also run in float16, which they train in: MAE-AST's with all weights in float16
(fairseq's common.fp16), SSAST's under autocast.

SSAST requires timm 0.4.5. Here it runs on the installed timm with the old model names and with
unfused attention, as in timm 0.4.5.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from measuring import RESULTS, Report, Side, ratios_of, serve

BATCHES = {"cpu": 4, "cuda": 32}
FRAMES, RATIO = 998, 0.75
SSAST_FRAMES, SSAST_MASKED = 1024, 400
OURS = {  # name: (precision, whether layers are compiled)
    "float32": ("float32", False),
    "bfloat16": ("bfloat16", False),
    "bfloat16, compiled": ("bfloat16", True),
}
GROUPS = {  # reference, its precision, dropout of both, our variants
    "cpu": [
        ("reference", "float32", 0.0, list(OURS)),
        ("reference", "float32", 0.1, list(OURS)),
        ("ssast", "float32", 0.0, ["bfloat16"]),
    ],
    "cuda": [
        ("reference", "float32", 0.0, ["float32"]),
        ("reference", "float16", 0.0, ["bfloat16", "bfloat16, compiled"]),
        ("reference", "float16", 0.1, ["bfloat16", "bfloat16, compiled"]),
        ("ssast", "float32", 0.0, ["float32"]),
        ("ssast", "float16", 0.0, ["bfloat16", "bfloat16, compiled"]),
    ],
}
NAMES = {"reference": "MAE-AST's authors'", "ssast": "SSAST's authors'"}
REPOSITORY = Path(__file__).parents[2]


def our_step(
    dropout: float, precision: str, device: str = "cpu", compiled: bool = False
) -> Callable[[], float]:
    """Return a function that runs a step and returns its loss.

    Args:
        dropout: of hidden states, attention and input.
        precision: "float32" or "bfloat16".
        device: "cpu" or "cuda".
        compiled: whether layers are compiled, as by ``model.compile=true``.
    """
    import torch
    from step_of_systems import masked_loss

    from mae_ast.core.models.config import MaeAstConfig
    from mae_ast.core.models.mae_ast import MaeAst
    from mae_ast.core.nn.malloc import keep_freed_memory
    from mae_ast.core.nn.transformer import compile_layers

    keep_freed_memory()  # as in training on a CPU
    config = MaeAstConfig(
        dropout=dropout,
        attention_dropout=dropout,
        dropout_input=dropout,
        random_mask_prob=RATIO,
        precision=precision,
    )
    model = MaeAst(config).train().to(device)
    if compiled:
        compile_layers(model)
    source = torch.randn(BATCHES[device], FRAMES, 128, device=device)

    def step() -> float:
        loss = masked_loss(model, source)
        loss.backward()
        model.zero_grad(set_to_none=True)
        return loss.item()

    return step


def reference_step(folder: str, dropout: float, precision: str, device: str) -> Callable[[], float]:
    """Return a step of the reference's model and criterion."""
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
    model = MAE_AST(config, task).train().to(device)
    criterion = MAE_AST_Criterion(task, 10.0, 1.0)
    source = torch.randn(BATCHES[device], FRAMES, 128, device=device)
    if precision == "float16":
        model, source = model.half(), source.half()
    padding = torch.zeros(source.shape[:2], dtype=torch.bool, device=device)
    sample = {
        "id": torch.arange(len(source)),
        "net_input": {"source": source, "padding_mask": padding},
    }

    def step() -> float:
        loss, _, _ = criterion(model, sample)
        loss.backward()
        model.zero_grad(set_to_none=True)
        return loss.item()

    return step


def ssast_step(folder: str, precision: str, device: str) -> Callable[[], float]:
    """Return a step of SSAST's joint loss, as in its training script."""
    sys.path[:0] = [str(REPOSITORY), str(Path(folder) / "src" / "models")]
    import timm
    import torch

    create = timm.create_model

    def old_create(name: str, **options: Any) -> Any:
        model = create(name.removeprefix("vit_"), **options)
        model.patch_embed.img_size = None  # accept any size
        return model

    timm.__version__, timm.create_model = "0.4.5", old_create
    timm.layers.set_fused_attn(False)
    from ast_models import ASTModel

    size = {"fshape": 16, "tshape": 16, "fstride": 16, "tstride": 16}
    model = ASTModel(**size, input_tdim=SSAST_FRAMES, model_size="base").train().to(device)
    source = torch.randn(BATCHES[device], SSAST_FRAMES, 128, device=device)

    def step() -> float:
        hidden = {"mask_patch": SSAST_MASKED, "cluster": True}
        with torch.autocast(device, torch.float16, enabled=precision == "float16"):
            _, info_nce = model(source, "pretrain_mpc", **hidden)
            loss = info_nce + 10 * model(source, "pretrain_mpg", **hidden)
        loss.backward()
        model.zero_grad(set_to_none=True)
        return loss.item()

    return step


def requested_step(arguments: argparse.Namespace) -> Callable[[], float]:
    """Return the step that a child process serves."""
    side, dropout, precision = arguments.serve
    if side == "ours":
        return our_step(float(dropout), precision, arguments.device, arguments.compiled)
    if side == "ssast":
        return ssast_step(arguments.ssast, precision, arguments.device)
    return reference_step(arguments.reference, float(dropout), precision, arguments.device)


def compare(
    other: str,
    their_precision: str,
    dropout: float,
    variants: list[str],
    options: list[str],
    rounds: int,
) -> dict[str, Any]:
    """Run interleaved steps of a reference and of our variants.

    Returns:
        Seconds of each step by round and side, and the peak memory of each side in GiB.
    """

    def side(name: str, precision: str, compiled: bool) -> Side:
        serve_as = ["--serve", name, str(dropout), precision]
        flags = ["--compiled"] if compiled else []
        return Side([sys.executable, __file__, *options, *flags, *serve_as])

    sides = {other: side(other, their_precision, False)}
    sides |= {variant: side("ours", *OURS[variant]) for variant in variants}
    taken = [{name: each.step() for name, each in sides.items()} for _ in range(rounds)]
    peaks = {name: each.close() for name, each in sides.items()}
    case = {"against": other, "in": their_precision, "dropout": dropout}
    return {**case, "rounds": taken, "peak_gib": peaks}


def add_rows(report: Report, result: dict[str, Any], variants: list[str]) -> None:
    """Add a row of the table for each of our variants."""
    other, rounds, peaks = result["against"], result["rounds"], result["peak_gib"]
    for variant in variants:
        ratios = ratios_of(times[other] / times[variant] for times in rounds)
        theirs, ours = (
            statistics.median(times[name] for times in rounds) for name in (other, variant)
        )
        report.add(
            f"| {NAMES[other]} | {result['in']} | {result['dropout']} | {variant} | {theirs:.3f} | "
            f"{ours:.3f} | {ratios} | {peaks[other]:.2f}, {peaks[variant]:.2f} |"
        )


def main() -> None:
    """Compare all cases; print and write a table and JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--reference", help="checkout of MAE-AST-Public")
    parser.add_argument("--ssast", help="checkout of ssast")
    parser.add_argument("--rounds", type=int, default=13, help="rounds of interleaved steps")
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="folder to write the result to"
    )
    parser.add_argument("--device", choices=tuple(GROUPS), default="cpu", help="device to run on")
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--compiled", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    device = arguments.device
    if arguments.serve:
        serve(requested_step(arguments), device)
        return
    folders = {name: folder for name in NAMES if (folder := getattr(arguments, name))}
    if not folders:
        parser.error("--reference, --ssast or both are required")
    report = Report(
        "A step of MAE-AST compared with the reference implementations",
        "12 + 2 layers of width 768, 16 x 16 patches, 75 % masked in chunks, "
        f"{BATCHES[device]} clips of 10 s;\nmasks, forward, 10 MSE + InfoNCE, backward; layerdrop "
        "0. SSAST's step is its joint one, on 1,024 frames.\n"
        f"{arguments.rounds} rounds; times are medians over rounds, ratios medians (minimum\nto "
        "maximum).",
        device,
    )
    report.add(
        "| reference | its precision | dropout | ours | reference (s) | ours (s) | speed-up | GiB |"
    )
    report.add("| --- " * 8 + "|")
    options = ["--device", device]
    options += [word for name, folder in folders.items() for word in (f"--{name}", folder)]
    results = []
    for other, precision, dropout, variants in GROUPS[device]:
        if other in folders:
            results.append(compare(other, precision, dropout, variants, options, arguments.rounds))
            add_rows(report, results[-1], variants)
    report.write("step_against_reference", arguments.results, results)


if __name__ == "__main__":
    main()
