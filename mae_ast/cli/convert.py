"""``mae-ast convert IN OUT --to KIND``: convert a checkpoint to another format."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

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
    report: Annotated[
        list[Path] | None,
        typer.Option(
            help="Report of 'mae-ast evaluate --out' whose scores the model card states; may be "
            "repeated. Default: reports about the checkpoint in the folder of its run, unless the "
            "checkpoint is newer."
        ),
    ] = None,
    license: Annotated[  # noqa: A002
        str | None,
        typer.Option(
            help="Licence of the weights for the model card: an identifier of the Hugging Face "
            "hub, such as cc-by-4.0. Default: stated as not recorded."
        ),
    ] = None,
) -> None:
    """Convert a checkpoint to another format.

    Of a fine-tuned checkpoint, transformers gets the classifier, and the other formats the encoder
    (for AST the full classifier).
    """
    import mae_ast
    from mae_ast.hub import export as conversion

    has_card = to in (Kind.safetensors, Kind.transformers)
    conversion.check_target(target, has_card, force)
    if (report or license) and not has_card:
        raise ValueError(f"--report and --license: --to {to.value} writes no model card")
    card = {"scores": _scores(source, report), "license": license} if has_card else {}
    if to is Kind.transformers:
        _to_transformers(source, target, force, card)
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
        conversion.to_safetensors(model, target, force, **card)
        typer.echo(f"{target}: for mae_ast.load and the Hugging Face hub")
    else:
        worst = conversion.to_onnx(model, target, force)
        typer.echo(f"{target}: differs from PyTorch by at most {worst:.1e}")


def _to_transformers(source: str, target: Path, force: bool, card: dict[str, Any]) -> None:
    from mae_ast.hub import export_transformers

    model = export_transformers.load_with_head(source)
    loader = export_transformers.to_transformers(model, target, force, **card)
    code = "" if loader.startswith("AST") else ", trust_remote_code=True"
    typer.echo(f"{target}: for transformers: {loader}.from_pretrained({str(target)!r}{code})")


def _scores(source: str, reports: list[Path] | None) -> list[Any]:
    """Return the scores in the given reports, or in those of a run."""
    from mae_ast.hub.scores import read_report, reports_in_run

    folders = reports_in_run(source) if reports is None else reports
    return [score for folder in folders for score in read_report(folder)]
