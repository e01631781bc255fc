"""``mae-ast probe CHECKPOINT MANIFEST``: evaluate frozen features."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from mae_ast.cli.options import Checkpoint, Device, Precision
from mae_ast.core.io.plural import plural


def probe(
    checkpoint: Checkpoint,
    manifest: Annotated[
        Path,
        typer.Argument(help="Manifest of the training clips, with their labels in NAME.lbl."),
    ],
    test: Annotated[
        Path | None,
        typer.Option(help="Manifest of the test clips; default: valid.tsv in the same folder."),
    ] = None,
    layers: Annotated[
        str,
        typer.Option(help="Layers to compare, such as 6,9,12, counted from 1; default: all."),
    ] = "",
    group: Annotated[
        str,
        typer.Option(
            help="Regular expression whose first group, found in a clip's path, names its speaker. "
            "Layer and regularisation are chosen on training clips of held-out speakers."
        ),
    ] = "(.*)",
    device: Device = None,
    precision: Precision = "float32",
) -> None:
    """Evaluate frozen features with a linear probe and k-NN.

    Baselines are the same network with random weights, and the mean log-mel spectrum.
    """
    from mae_ast.cli.device import load_model
    from mae_ast.console import bar
    from mae_ast.evaluate import probe as probing
    from mae_ast.evaluate.probe_data import match_classes, read_labelled

    try:
        chosen = [int(layer) for layer in layers.split(",")] if layers else None
        pattern = re.compile(group)
    except (ValueError, re.error) as error:
        raise ValueError(f"--layers {layers!r} --group {group!r}: {error}") from error
    train, tested = match_classes(
        read_labelled(manifest, pattern),
        read_labelled(test or manifest.parent / "valid.tsv", pattern),
    )
    model = load_model(checkpoint, device, precision)
    scores = probing.probe(model, train, tested, chosen, bar("embedding", "clip"))
    measure = "accuracy" if train.targets.ndim == 1 else "mean average precision"
    typer.echo(f"{measure} on {plural(scores['pretrained'].num_clips, 'clip')}")
    typer.echo(f"{'':16} linear     k-NN  layer")
    for name, found in scores.items():
        typer.echo(f"{name:16} {found.linear:6.1%}  {found.knn:7.1%}  {found.layer or '-':>5}")
