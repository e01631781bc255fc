"""``mae-ast convert IN OUT --to KIND``: a checkpoint to another kind of file."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Kind(StrEnum):
    """Kinds of file that can be written."""

    released = "released"
    safetensors = "safetensors"
    hugging_face = "hugging-face"
    onnx = "onnx"


def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="IN", help="A file, a run's folder, a released model's name, a URL, a hub id."
        ),
    ],
    target: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="A file; for safetensors and hugging-face a folder."),
    ],
    to: Annotated[
        Kind,
        typer.Option(
            help="released: for stock s3prl and the authors' programs; safetensors: the Hugging "
            "Face hub's layout; hugging-face: transformers' AST; onnx: log-mel to the last hidden "
            "state of MAE-AST."
        ),
    ],
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite OUT, a file or an earlier model's folder.")
    ] = False,
) -> None:
    """Convert a checkpoint to another format."""
    import mae_ast
    from mae_ast.hub import export as conversion

    conversion.check_target(target, to in (Kind.safetensors, Kind.hugging_face), force)
    model = mae_ast.load(source)
    if to is Kind.released:
        untold = conversion.to_released_file(model, target, force)
        typer.echo(f"{target}: for stock s3prl and the authors' programs")
        if untold:
            settings = ", ".join(
                f"{key}={value:.6g}" if isinstance(value, float) else f"{key}={value}"
                for key, value in untold.items()
            )
            typer.echo(f"its layout has no place for {settings}: tell the program that reads it")
    elif to is Kind.safetensors:
        conversion.to_safetensors(model, target, force)
        typer.echo(f"{target}: for mae_ast.load and the Hugging Face hub")
    elif to is Kind.hugging_face:
        conversion.to_hugging_face(model, target, force)
        typer.echo(f"{target}: for transformers' ASTForAudioClassification")
    else:
        worst = conversion.to_onnx(model, target, force)
        typer.echo(f"{target}: differs from PyTorch by at most {worst:.1e}")
