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
    onnx = "onnx"


def convert(
    source: Annotated[
        str, typer.Argument(metavar="IN", help="A file, a released model's name, a URL, a hub id.")
    ],
    target: Annotated[
        Path, typer.Argument(metavar="OUT", help="A file, or for safetensors a folder.")
    ],
    to: Annotated[
        Kind,
        typer.Option(
            help="released: for stock s3prl; safetensors: the Hugging Face hub's layout; "
            "onnx: log-mel to the last hidden state."
        ),
    ],
) -> None:
    """Write a checkpoint as another kind of file."""
    import mae_ast
    from mae_ast import convert as conversion

    model = mae_ast.load(source)
    if to is Kind.released:
        conversion.to_released_file(model, target)
        typer.echo(f"{target}: for s3prl's mae_ast_local")
    elif to is Kind.safetensors:
        conversion.to_safetensors(model, target)
        typer.echo(f"{target}: for mae_ast.load and the Hugging Face hub")
    else:
        worst = conversion.to_onnx(model, target)
        typer.echo(f"{target}: differs from PyTorch by at most {worst:.1e}")
