"""``mae-ast probe CHECKPOINT MANIFEST``: what a model's features are worth, without fine-tuning."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from mae_ast.core.io.plural import plural


def probe(
    checkpoint: Annotated[
        str,
        typer.Argument(help="A file, a run's folder, a released model's name, a URL, a hub id."),
    ],
    manifest: Annotated[
        Path, typer.Argument(help="Manifest of the training clips; labels in .lbl beside it.")
    ],
    test: Annotated[
        Path | None, typer.Option(help="Manifest of the test clips; default: valid.tsv beside.")
    ] = None,
    layers: Annotated[str, typer.Option(help="Such as 6,9,12, counted from 1; default: all.")] = "",
    group: Annotated[
        str,
        typer.Option(
            help="Regular expression whose first group, found in a clip's path, is its speaker: "
            "the part of the training clips that chooses layer and regularisation shares none."
        ),
    ] = "(.*)",
    device: Annotated[
        str, typer.Option(help="Device: cpu, cuda, ...; default: cuda if available.")
    ] = "",
) -> None:
    """Fit a linear probe and nearest neighbours to frozen features.

    Beside the model, the same network with random weights and mean log-mel are scored.
    """
    import mae_ast
    from mae_ast.cli.device import place
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
    model = place(mae_ast.load(checkpoint), device)
    scores = probing.probe(model, train, tested, chosen, bar("embedding", "step"))
    measure = "accuracy" if train.targets.ndim == 1 else "mean average precision"
    typer.echo(f"{measure} on {plural(scores['pretrained'].num_clips, 'clip')}")
    typer.echo(f"{'':16} linear  nearest  layer")
    for name, found in scores.items():
        typer.echo(
            f"{name:16} {found.linear:6.1%}  {found.neighbours:7.1%}  {found.layer or '-':>5}"
        )
