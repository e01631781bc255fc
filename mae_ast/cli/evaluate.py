"""``mae-ast evaluate RUN_OR_CHECKPOINT DATA``: metrics of a fine-tuned classifier."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from mae_ast.core.io.plural import plural


def evaluate(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="RUN_OR_CHECKPOINT", help="What 'mae-ast finetune' wrote: its folder or a file."
        ),
    ],
    data: Annotated[Path, typer.Argument(help="Folder of labels.csv, valid.tsv, valid.lbl, ...")],
    split: Annotated[str, typer.Option(help="Split to score, such as valid or test.")] = "valid",
    average: Annotated[
        int, typer.Option(help="Average the weights of a run's last N epoch checkpoints.")
    ] = 1,
    out: Annotated[
        Path | None, typer.Option(help="Folder for scores by class (CSV) and a plot.")
    ] = None,
    device: Annotated[
        str, typer.Option(help="Device: cpu, cuda, ...; default: cuda if available.")
    ] = "",
) -> None:
    """Score a split: accuracy, mAP, mean AUC, d-prime, and all classes as a table.

    The d-prime of a perfect class would be infinite; it counts as if half a pair of clips were
    ranked wrongly.

    Clips longer than the network's input are scored in windows, as in 'mae-ast predict'.
    """
    from mae_ast.cli.device import place
    from mae_ast.console import bar
    from mae_ast.evaluate import report
    from mae_ast.finetune.checkpoint import load_finetuned

    if out is not None:
        out.mkdir(parents=True, exist_ok=True)  # fails before the clips are scored
    classifier = load_finetuned(source, average)
    place(classifier.model, device)
    found = report.evaluate(classifier, data, split, bar("scoring", "clip"))
    summary = found.summary
    num_skipped = found.num_left_out
    left_out = f", {plural(num_skipped, 'clip')} skipped" if num_skipped else ""
    typer.echo(
        f"{split}: {plural(summary.num_clips, 'clip')}, {summary.num_classes_seen} of "
        f"{plural(len(found.labels), 'class', 'classes')}{left_out}"
    )
    for name, value in (
        ("accuracy", summary.accuracy),
        ("mAP", summary.mean_average_precision),
        ("mean AUC", summary.mean_auc),
        ("d-prime", summary.d_prime),
    ):
        if not math.isnan(value):
            typer.echo(f"{name:10}{value:.4f}")
    if out is not None:
        written = report.write_report(found, out, f"{source.name}, {split}")
        typer.echo(", ".join(str(path) for path in written))
