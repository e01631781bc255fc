"""``mae-ast predict CHECKPOINT FILE...``: what a fine-tuned classifier hears."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def predict(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="RUN_OR_CHECKPOINT", help="What 'mae-ast finetune' wrote: its folder or a file."
        ),
    ],
    files: Annotated[list[Path], typer.Argument(help="Audio of any kind.")],
    top: Annotated[int, typer.Option(min=1, help="Number of labels per file.")] = 5,
    average: Annotated[
        int, typer.Option(help="Average the weights of a run's last N epoch checkpoints.")
    ] = 1,
    device: Annotated[
        str, typer.Option(help="Device: cpu, cuda, ...; default: cuda if available.")
    ] = "",
) -> None:
    """Print each file's most likely labels, a line each: file, score, label.

    A file longer than the network's input is scored in windows up to its end; its score is the mean
    of their probabilities.

    If several files are given, unreadable ones are reported and skipped; the exit status is then 1.
    """
    from mae_ast.cli.device import place
    from mae_ast.core.io.audio import AudioError
    from mae_ast.evaluate.predict import score_recording
    from mae_ast.finetune.checkpoint import load_finetuned

    classifier = load_finetuned(source, average)
    place(classifier.model, device)
    left_out = 0
    for file in files:
        try:
            scores = score_recording(classifier, file)
        except (AudioError, FileNotFoundError) as error:
            if len(files) == 1:
                raise
            typer.echo(f"skipped: {error}", err=True)
            left_out += 1
            continue
        for index in scores.argsort()[::-1][:top]:
            typer.echo(f"{file}\t{scores[index]:.4f}\t{classifier.labels.names[index]}")
    if left_out:
        raise SystemExit(f"mae-ast: error: {left_out} of {len(files)} files skipped, see above")
