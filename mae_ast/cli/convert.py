"""``mae-ast convert IN OUT --to KIND``: convert a checkpoint to another format."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mae_ast.cli.options import model_argument

if TYPE_CHECKING:
    from mae_ast.finetune.checkpoint import FineTuned
    from mae_ast.hub.load import Pretrained
    from mae_ast.hub.onnx_export import Measured


class Kind(StrEnum):
    """Formats that can be written."""

    released = "released"
    safetensors = "safetensors"
    hugging_face = "hugging-face"
    onnx = "onnx"


class Input(StrEnum):
    """Inputs of an ONNX file."""

    log_mel = "log-mel"
    waveform = "waveform"
    waveform_int16 = "waveform-int16"


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
            "safetensors: for the Hugging Face hub; hugging-face: transformers' AST; onnx: last "
            "hidden state of an encoder, or the scores of a fine-tuned model."
        ),
    ],
    force: Annotated[
        bool,
        typer.Option("--force", help="Overwrite an existing OUT: a file, or a model's folder."),
    ] = False,
    source_kind: Annotated[
        Input,
        typer.Option(
            "--input",
            help="Input of an ONNX file: log-mel, or the waveform at 16 kHz, float32 in [-1, 1] or "
            "int16.",
        ),
    ] = Input.log_mel,
    int8: Annotated[
        bool,
        typer.Option(
            "--int8", help="Quantise the linear layers of an ONNX file's transformer to 8 bits."
        ),
    ] = False,
) -> None:
    """Convert a checkpoint to another format."""
    import mae_ast
    from mae_ast.hub import export as conversion

    conversion.check_target(target, to in (Kind.safetensors, Kind.hugging_face), force)
    if to is not Kind.onnx and (int8 or source_kind is not Input.log_mel):
        raise ValueError(f"--input and --int8 are options of --to onnx, not of --to {to.value}")
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
        written = conversion.to_onnx(
            classifier_of(source, model) or model, target, force, source_kind.value, int8
        )
        worst = written.float32.max_difference
        typer.echo(f"{target}: differs from PyTorch by at most {worst:.1e}")
        if written.int8 is not None:
            typer.echo(_int8_text(written.float32, written.int8))


def classifier_of(source: str, model: Pretrained) -> FineTuned | None:
    """Return the classifier of a source whose encoder is ``model``; ``None``: it has none."""
    from mae_ast.core.checkpoints.reader import CheckpointError
    from mae_ast.finetune.checkpoint import load_finetuned

    if not (model.encoder_only or hasattr(model, "head")):
        return None
    try:
        return load_finetuned(source)
    except CheckpointError:
        return None


def _int8_text(in_float: Measured, int8: Measured) -> str:
    share = int8.mean_difference / in_float.mean_output
    return (
        f"int8 differs from PyTorch by {int8.mean_difference:.2g} on average "
        f"({share:.2%} of the mean output) and {int8.max_difference:.2g} at most; 10 s of audio "
        f"take {int8.seconds:.2f} s instead of {in_float.seconds:.2f} s; "
        f"{int8.size / 1e6:.1f} MB instead of {in_float.size / 1e6:.1f} MB"
    )
