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


class Input(Choice):
    """Inputs of an ONNX file."""

    log_mel = "log-mel"
    waveform = "waveform"
    waveform_int16 = "waveform-int16"


Target = Annotated[
    Path,
    typer.Argument(metavar="OUT", help="File to write; a folder for safetensors and transformers."),
]
To = Annotated[
    Kind,
    typer.Option(
        help="Format to write. released: for stock s3prl and the authors' implementations; "
        "safetensors: for mae_ast.load and the Hugging Face hub; transformers: for people "
        "without this package, who load the encoder or classifier with transformers; onnx: "
        "the last hidden state of an encoder, or the scores of a classifier."
    ),
]
Force = Annotated[
    bool,
    typer.Option("--force", help="Overwrite an existing OUT: a file, or a model's folder."),
]
Reports = Annotated[
    list[Path] | None,
    typer.Option(
        help="Report of 'mae-ast evaluate --out' whose scores the model card states; may be "
        "repeated. Default: reports about the checkpoint in the folder of its run, unless the "
        "checkpoint is newer."
    ),
]
License = Annotated[
    str | None,
    typer.Option(
        help="Licence of the weights for the model card: an identifier of the Hugging Face "
        "hub, such as cc-by-4.0. Default: stated as not recorded."
    ),
]
InputKind = Annotated[
    Input,
    typer.Option(
        "--input",
        help="Input of an ONNX file: log-mel, or the waveform at 16 kHz, float32 in [-1, 1] or "
        "int16.",
    ),
]
Int8 = Annotated[
    bool,
    typer.Option(
        "--int8", help="Quantise the linear layers of an ONNX file's transformer to 8 bits."
    ),
]


def convert(
    source: Annotated[str, model_argument("IN")],
    target: Target,
    to: To,
    force: Force = False,
    report: Reports = None,
    license: License = None,  # noqa: A002
    source_kind: InputKind = Input.log_mel,
    int8: Int8 = False,
) -> None:
    """Convert a checkpoint to another format.

    Of a fine-tuned checkpoint, transformers and onnx get the classifier, and the other formats the
    encoder (for AST the full classifier).
    """
    import mae_ast
    from mae_ast.hub import export as conversion

    has_card = to in (Kind.safetensors, Kind.transformers)
    conversion.check_target(target, has_card, force)
    if (report or license) and not has_card:
        raise ValueError(f"--report and --license: --to {to.value} writes no model card")
    if to is not Kind.onnx and (int8 or source_kind is not Input.log_mel):
        raise ValueError(f"--input and --int8 are options of --to onnx, not of --to {to.value}")
    card = {"scores": _scores(source, report), "license": license} if has_card else {}
    if to is Kind.transformers:
        _to_transformers(source, target, force, card)
        return
    if to is Kind.onnx:
        _to_onnx(source, target, force, source_kind, int8)
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
    else:
        conversion.to_safetensors(model, target, force, **card)
        typer.echo(f"{target}: for mae_ast.load and the Hugging Face hub")


def _to_onnx(source: str, target: Path, force: bool, source_kind: Input, int8: bool) -> None:
    from mae_ast.hub import export_onnx
    from mae_ast.hub.export import load_with_head

    model = load_with_head(source)
    written = export_onnx.to_onnx(model, target, force, source_kind.value, int8)
    in_float, quantised = written.float32, written.int8
    typer.echo(f"{target}: differs from PyTorch by at most {in_float.max_difference:.1e}")
    if quantised is None:
        return
    ratio = quantised.mean_difference / in_float.mean_output
    typer.echo(
        f"int8 differs from PyTorch by {quantised.mean_difference:.2g} on average "
        f"({ratio:.2%} of the mean output) and {quantised.max_difference:.2g} at most; 10 s of "
        f"audio take {quantised.seconds:.2f} s instead of {in_float.seconds:.2f} s; "
        f"{quantised.size / 1e6:.1f} MB instead of {in_float.size / 1e6:.1f} MB"
    )


def _to_transformers(source: str, target: Path, force: bool, card: dict[str, Any]) -> None:
    from mae_ast.hub import export_transformers
    from mae_ast.hub.export import load_with_head

    model = load_with_head(source)
    loader = export_transformers.to_transformers(model, target, force, **card)
    code = "" if loader.startswith("AST") else ", trust_remote_code=True"
    typer.echo(f"{target}: for transformers: {loader}.from_pretrained({str(target)!r}{code})")


def _scores(source: str, reports: list[Path] | None) -> list[Any]:
    """Return the scores in the given reports, or in those of a run."""
    from mae_ast.hub.scores import read_report, reports_in_run

    folders = reports_in_run(source) if reports is None else reports
    return [score for folder in folders for score in read_report(folder)]
