"""The ``mae-ast`` command: one sub-command a file."""

from __future__ import annotations

import sys

import typer

from mae_ast import __version__
from mae_ast.cli import (
    bench,
    convert,
    crossvalidate,
    demo,
    download,
    evaluate,
    extract,
    finetune,
    manifest,
    models,
    pack,
    plan,
    predict,
    prepare,
    pretrain,
    probe,
    reconstruct,
    stats,
    superb,
)
from mae_ast.console import describe

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Self-supervised pretraining of spectrogram transformers.",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", callback=_show_version, is_eager=True, help="Show the version."
    ),
) -> None:
    pass


app.command("manifest")(manifest.manifest)
app.command("pack")(pack.pack)
app.command("prepare")(prepare.prepare)
app.command("stats")(stats.stats)
app.command(
    "pretrain", context_settings={"allow_extra_args": True, "ignore_unknown_options": True}
)(pretrain.pretrain)
app.command("plan", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(
    plan.plan
)
app.command(
    "finetune", context_settings={"allow_extra_args": True, "ignore_unknown_options": True}
)(finetune.finetune)
app.command(
    "crossvalidate", context_settings={"allow_extra_args": True, "ignore_unknown_options": True}
)(crossvalidate.crossvalidate)
app.command("evaluate")(evaluate.evaluate)
app.command("predict")(predict.predict)
app.command("reconstruct")(reconstruct.reconstruct)
app.command("models")(models.models)
app.command("download")(download.download)
app.command("convert")(convert.convert)
app.command("extract")(extract.extract)
app.command("probe")(probe.probe)
app.command("superb", context_settings={"allow_extra_args": True})(superb.superb)
app.command("demo")(demo.demo)
app.command("bench", context_settings={"allow_extra_args": True})(bench.bench)


def main() -> None:
    """Entry point; wrong input ends in one line, not in a traceback."""
    try:
        app()
    except (ValueError, OSError) as error:
        sys.exit(f"mae-ast: error: {describe(error)}")
    except KeyboardInterrupt:
        sys.exit("mae-ast: interrupted")
