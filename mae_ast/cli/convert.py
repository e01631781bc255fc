"""``mae-ast convert IN OUT --to KIND``: convert a checkpoint to another format."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mae_ast.cli.options import Choice, model_argument


class Kind(Choice):
    """Formats that can be written."""

    released = "released"
    safetensors = "safetensors"
    hugging_face = "hugging-face"
    onnx = "onnx"


def convert(
    source: Annotated[str, model_argument("IN")],
    target: Annotated[
        Path,
        typer.Argument(
            metavar="OUT", help="File to write; a folder for safetensors and hugging-face."
        ),
    ],
    to: Annotated[
        Kind,
        typer.Option(
            help="Format to write. released: for stock s3prl and the authors' implementations; "
            "safetensors: for the Hugging Face hub; hugging-face: transformers' AST; onnx: from "
            "log-mel to the last hidden state of MAE-AST."
        ),
    ],
    force: Annotated[
        bool,
        typer.Option("--force", help="Overwrite an existing OUT: a file, or a model's folder."),
    ] = False,
) -> None:
    """Convert a checkpoint to another format."""
    import mae_ast
    from mae_ast.hub import export as conversion

    conversion.check_target(target, to in (Kind.safetensors, Kind.hugging_face), force)
    model = mae_ast.load(source)
    if to is Kind.released:
        unstored = conversion.to_released_file(model, target, force)
        typer.echo(f"{target}: for stock s3prl and the authors' implementations")
        if unstored:
            settings = ", ".join(
                f"{key}={value:.6g}" if isinstance(value, float) else f"{key}={value}"
                for key, value in unstored.items()
            )
            typer.echo(f"the format cannot store {settings}: set them where it is loaded")
    elif to is Kind.safetensors:
        conversion.to_safetensors(model, target, force)
        typer.echo(f"{target}: for mae_ast.load and the Hugging Face hub")
    elif to is Kind.hugging_face:
        conversion.to_hugging_face(model, target, force)
        typer.echo(f"{target}: for transformers' ASTForAudioClassification")
    else:
        worst = conversion.to_onnx(model, target, force)
        typer.echo(f"{target}: differs from PyTorch by at most {worst:.1e}")
