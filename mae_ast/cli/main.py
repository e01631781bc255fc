"""The ``mae-ast`` command, which has a module of this package for each sub-command.

These modules import what they need within their functions, so that help and shell completion answer
at once; a test verifies this.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

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
    report,
    stats,
    study,
    superb,
)
from mae_ast.console import describe, named_extras

# Heading in the help to functions; the name of a function is that of its command.
COMMANDS: dict[str, tuple[Callable[..., None], ...]] = {
    "Data": (manifest.manifest, stats.stats, pack.pack),
    "Train": (pretrain.pretrain, finetune.finetune, crossvalidate.crossvalidate, demo.demo),
    "Evaluate": (
        *(evaluate.evaluate, probe.probe, report.report, study.study),
        superb.superb,
    ),
    "Use a model": (
        *(models.models, download.download, predict.predict, extract.extract),
        *(reconstruct.reconstruct, convert.convert),
    ),
    "Measure": (plan.plan, bench.bench),
}
# Commands with commands of their own, by name, and their heading in the help.
GROUPS: dict[str, tuple[str, typer.Typer]] = {"prepare": ("Data", prepare.app)}
# Commands that pass unknown options on to hydra.
TAKE_OPTIONS_OF_HYDRA = (
    *(pretrain.pretrain, finetune.finetune, crossvalidate.crossvalidate),
    plan.plan,
)

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Self-supervised pretraining of spectrogram transformers.",
)
for _panel, _functions in COMMANDS.items():
    for _function in _functions:
        _settings = {"ignore_unknown_options": _function in TAKE_OPTIONS_OF_HYDRA}
        app.command(rich_help_panel=_panel, context_settings=_settings)(_function)
for _name, (_panel, _group) in GROUPS.items():
    app.add_typer(_group, name=_name, rich_help_panel=_panel)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
    ),
) -> None:
    pass


def main() -> None:
    """Run the command line of this process; wrong input ends in one line without a traceback."""
    try:
        with named_extras():
            app()
    except (ValueError, OSError) as error:
        sys.exit(f"mae-ast: error: {describe(error)}")
    except KeyboardInterrupt:
        sys.exit("mae-ast: interrupted")
