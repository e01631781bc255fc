"""``mae-ast evaluate RUN_OR_CHECKPOINT DATA``: metrics of a fine-tuned classifier."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from mae_ast.cli.options import Average, Classifier, Device, Precision, data_argument
from mae_ast.core.io.plural import plural


def evaluate(
    source: Classifier,
    data: Annotated[Path, data_argument("Folder with labels.csv, valid.tsv, valid.lbl, ...")],
    split: Annotated[str, typer.Option(help="Split to score, such as valid or test.")] = "valid",
    average: Average = 1,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the scores by class (CSV) and plots.")
    ] = None,
    device: Device = None,
    precision: Precision = "float32",
) -> None:
    """Score a fine-tuned classifier on a labelled split.

    Prints accuracy, mAP, mean AUC and d-prime. The d-prime of a perfectly separated class would be
    infinite; it is computed as if half a pair of clips were ranked wrongly.

    Clips longer than the network's input are scored in windows, as in 'mae-ast predict'.
    """
    from mae_ast.cli.device import load_classifier
    from mae_ast.console import bar, require
    from mae_ast.evaluate import report
    from mae_ast.evaluate.training_curves import write_curves

    require("sklearn")  # used after scoring
    _check_split(data, split)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)  # fails before the clips are scored
    classifier = load_classifier(source, average, device, precision)
    found = report.evaluate(classifier, data, split, bar("scoring", "clip"))
    summary = found.summary
    num_skipped = found.num_skipped
    skipped = f", {plural(num_skipped, 'clip')} skipped" if num_skipped else ""
    typer.echo(
        f"{split}: {plural(summary.num_clips, 'clip')}, {summary.num_classes_seen} of "
        f"{plural(len(found.labels), 'class', 'classes')}{skipped}"
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
        if (curves := write_curves(source, out)) is not None:
            written.append(curves)
        typer.echo(", ".join(str(path) for path in written))


def _check_split(data: Path, split: str) -> None:
    """Refuse a split that is not in a folder.

    Raises:
        NotADirectoryError: there is no such folder.
        FileNotFoundError: it has no manifest, or no labels, of this name.
    """
    if not data.is_dir():
        raise NotADirectoryError(f"{data}: no such folder")
    needed = (f"{split}.tsv", f"{split}.lbl")
    missing = [name for name in needed if not (data / name).is_file()]
    if missing:
        labelled = (path for path in data.glob("*.tsv") if path.with_suffix(".lbl").is_file())
        splits = ", ".join(sorted(path.stem for path in labelled)) or "none"
        raise FileNotFoundError(
            f"--split {split}: {data} has no {' and no '.join(missing)}; its splits with labels: "
            f"{splits}"
        )
