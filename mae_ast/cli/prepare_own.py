"""``mae-ast prepare folders DIR`` and ``mae-ast prepare table FILE``: labelled data of your own."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mae_ast.cli.options import Jobs, seed_option
from mae_ast.cli.skipped import report_prepared
from mae_ast.core.io.plural import plural

if TYPE_CHECKING:
    from mae_ast.prepare.division import Division
    from mae_ast.prepare.own_clip import OwnClip
    from mae_ast.prepare.summary import Summary

MAX_ROWS = 20  # maximum number of classes to print

Out = Annotated[
    Path | None,
    typer.Option(
        help="Folder for the manifests; default: manifests/NAME, after the folder or the table.",
        show_default=False,
    ),
]
Group = Annotated[
    str | None,
    typer.Option(
        metavar="REGEX",
        help="Regular expression that finds the speaker, site or session in a file's path below "
        "the folder of the data: its group (?P<group>...), or the first one. All clips of a group "
        "are in one split.",
        show_default=False,
    ),
]
Folds = Annotated[
    int | None,
    typer.Option(
        min=2,
        help="Number of folds for 'mae-ast crossvalidate', instead of splits.",
        show_default=False,
    ),
]
Valid = Annotated[
    float | None,
    typer.Option(
        min=0, help="Ratio of files, or groups, for validation; default: 0.1.", show_default=False
    ),
]
Test = Annotated[
    float | None,
    typer.Option(
        min=0, help="Ratio of files, or groups, for test; default: 0.1.", show_default=False
    ),
]
MinSeconds = Annotated[
    float,
    typer.Option(
        help="Minimum length of a clip, in seconds. A model needs one patch: 0.175 s, with frame "
        "patches 0.035 s."
    ),
]


def folders(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR",
            help="Folder with a folder for each class, or with train, valid and test that have a "
            "folder for each class.",
        ),
    ],
    out: Out = None,
    group: Group = None,
    folds: Folds = None,
    valid: Valid = None,
    test: Test = None,
    min_seconds: MinSeconds = 0.175,
    seed: Annotated[int, seed_option("split")] = 0,
    jobs: Jobs = 16,
) -> None:
    """Write manifests and labels of class folders.

    The class of a file is the name of the first folder below DIR (below train, valid and test, if
    DIR has these). Without such folders, the hash of a file's path below DIR decides its split, so
    that adding files does not move others.
    """
    from mae_ast.prepare.class_folders import find_clips
    from mae_ast.prepare.division import Division

    division = Division(valid, test, folds or 0, seed, _compiled(group))
    found = find_clips(folder, jobs)
    for note in found.notes:
        typer.echo(note)
    if found.loose:
        typer.echo(
            f"skipped {plural(len(found.loose), 'audio file')} outside class folders, such as "
            f"{found.loose[0]}",
            err=True,
        )
    if found.others.others:
        typer.echo(f"skipped, by suffix: {found.others.describe_others()}", err=True)
    root = Path(os.path.abspath(folder))
    _write(found.clips, root, out or Path("manifests") / root.name, division, min_seconds, jobs)


def table(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="CSV, TSV or JSON Lines file with the columns path and label, and optionally "
            "split or fold, group, and start and end in seconds.",
        ),
    ],
    root: Annotated[
        Path | None,
        typer.Option(
            help="Folder that paths are relative to; default: that of FILE.", show_default=False
        ),
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=NAME",
            help="Name of a column in the table, such as path=filename or label=category; KEY= "
            "does not use a column. Repeat for several.",
            show_default=False,
        ),
    ] = None,
    separator: Annotated[
        str, typer.Option(help="String between several labels in a cell; '': a cell is one label.")
    ] = ";",
    out: Out = None,
    group: Group = None,
    folds: Folds = None,
    valid: Valid = None,
    test: Test = None,
    min_seconds: MinSeconds = 0.175,
    seed: Annotated[int, seed_option("split")] = 0,
    jobs: Jobs = 16,
) -> None:
    """Write manifests and labels of the clips in a table.

    A clip may be a segment of a long recording, from start to end, which is not copied. Several
    labels of a clip are separated by ; in the cell, a list in JSON Lines, or in several rows.
    Without a column split or fold, the hash of the path decides the split, so that adding files
    does not move others; all segments of a file are in one split.
    """
    from mae_ast.prepare.division import Division
    from mae_ast.prepare.own_clip import common_root
    from mae_ast.prepare.table import read_table

    division = Division(valid, test, folds or 0, seed, _compiled(group))
    renamed = dict(_key_and_name(text) for text in column or ())
    found = read_table(file, root, renamed, separator)
    if group is not None and "group" in found.columns:
        raise ValueError(f"{file}: has a column {found.columns['group']} already; drop --group")
    for line in found.preview():
        typer.echo(line)
    out = out or Path("manifests") / file.stem
    _write(found.clips, common_root(found.clips), out, division, min_seconds, jobs)


def _compiled(group: str | None) -> re.Pattern[str] | None:
    from mae_ast.prepare.splitting import compile_group

    return None if group is None else compile_group(group)


def _key_and_name(text: str) -> tuple[str, str]:
    key, equals, name = text.partition("=")
    if not equals:
        raise ValueError(f"--column {text}: expected KEY=NAME, such as path=filename")
    return key, name


def _write(
    clips: list[OwnClip],
    root: Path,
    out: Path,
    division: Division,
    min_seconds: float,
    jobs: int,
) -> None:
    """Write the manifests and the summary, and report them."""
    from mae_ast.console import advice
    from mae_ast.prepare.own_data import write_own_data
    from mae_ast.prepare.summary import FIGURE_FILE, TABLE_FILE

    written = write_own_data(clips, root, out, division, min_seconds, jobs)
    report_prepared(written.prepared)
    _print_summary(written.summary, out / TABLE_FILE)
    try:
        written.summary.draw(out / FIGURE_FILE)
        typer.echo(f"{out / TABLE_FILE}, {out / FIGURE_FILE}")
    except ImportError:
        typer.echo(f"{out / TABLE_FILE}; no {FIGURE_FILE}: {advice('matplotlib')}")
    for warning in written.warnings:
        typer.echo(f"warning: {warning}", err=True)


def _print_summary(summary: Summary, table: Path) -> None:
    """Print the clips of each class, and a line on their labels and balance."""
    from mae_ast.core.io.labels import UNEVEN

    header, *rows = summary.rows()
    shown = [header, *rows[:MAX_ROWS]]
    widths = [max(map(len, cells)) for cells in zip(*shown, strict=True)]
    for name, *values in shown:
        numbers = zip(values, widths[1:], strict=True)
        typer.echo("  ".join([name.ljust(widths[0]), *(each.rjust(w) for each, w in numbers)]))
    if len(rows) > MAX_ROWS:
        more = plural(len(rows) - MAX_ROWS, "more class", "more classes")
        typer.echo(f"and {more}, listed in {table}")
    labels = "clips with several labels" if summary.multi_label else "one label per clip"
    if summary.imbalance == 1:
        typer.echo(
            f"{labels}; even classes: {plural(int(summary.counts[:, 0].sum()), 'clip')} each"
        )
        return
    balance = "uneven" if summary.imbalance > UNEVEN else "even"
    typer.echo(
        f"{labels}; {balance} classes: the largest has {summary.imbalance:.3g} times the clips of "
        "the smallest"
    )
