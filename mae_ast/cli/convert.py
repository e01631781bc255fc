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
    transformers = "transformers"
    onnx = "onnx"


def convert(
    source: Annotated[str, model_argument("IN")],
    target: Annotated[
        Path,
        typer.Argument(
            metavar="OUT", help="File to write; a folder for safetensors and transformers."
        ),
    ],
    to: Annotated[
        Kind,
        typer.Option(
            help="Format to write. released: for stock s3prl and the authors' implementations; "
            "safetensors: for mae_ast.load and the Hugging Face hub; transformers: for people "
            "without this package, who load the encoder or classifier with transformers; onnx: "
            "from log-mel to the last hidden state of MAE-AST."
        ),
    ],
    force: Annotated[
        bool,
        typer.Option("--force", help="Overwrite an existing OUT: a file, or a model's folder."),
    ] = False,
) -> None:
    """Convert a checkpoint to another format.

    Of a fine-tuned checkpoint, transformers gets the classifier, and the other formats the encoder
    (for AST the full classifier).
    """
    import mae_ast
    from mae_ast.hub import export as conversion

    conversion.check_target(target, to in (Kind.safetensors, Kind.transformers), force)
    if to is Kind.transformers:
        _to_transformers(source, target, force)
        return
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
    else:
        worst = conversion.to_onnx(model, target, force)
        typer.echo(f"{target}: differs from PyTorch by at most {worst:.1e}")


def _to_transformers(source: str, target: Path, force: bool) -> None:
    from mae_ast.hub import export_transformers

    model = export_transformers.load_with_head(source)
    loader = export_transformers.to_transformers(model, target, force)
    code = "" if loader.startswith("AST") else ", trust_remote_code=True"
    typer.echo(f"{target}: for transformers: {loader}.from_pretrained({str(target)!r}{code})")
