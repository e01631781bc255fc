"""``mae-ast report RUN...``: one HTML page on runs, with curves, sounds and embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mae_ast.cli.options import Device, ExcerptSeconds


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN",
            help="Run folders of 'mae-ast pretrain' or 'mae-ast finetune', or folders of "
            "'mae-ast study'.",
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "--output", "-o", help="HTML file to write.")
    ] = Path("report.html"),
    title: Annotated[
        str,
        typer.Option(help="Title of the page; default: the names of the runs, or their number."),
    ] = "",
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of the runs' manifests, if it was moved since training."),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="Folder of labelled clips to embed, with labels.csv, valid.tsv and valid.lbl; "
            "default: the run's task.probe_data or task.data."
        ),
    ] = None,
    clips: Annotated[
        int, typer.Option(min=0, help="Number of validation clips to reconstruct.")
    ] = 4,
    seconds: ExcerptSeconds = 5.0,
    timing: Annotated[
        bool, typer.Option(help="Measure the parts of a training step, for up to 10 s per run.")
    ] = True,
    device: Device = None,
) -> None:
    """Write a page on runs or studies: settings, curves, sounds, embeddings and tables.

    The page of a study shows its tables, plots of its measures, and the first run of each setting.

    The page is one HTML file that needs no network. Masked and reconstructed spectrograms are made
    audible by Griffin-Lim. What a run lacks is named on the page.
    """
    from mae_ast.console import bar, readable, require

    require("sklearn", "hydra")
    _check(out, data, labels, seconds)

    from mae_ast.cli.device import usable_device
    from mae_ast.report.collect import read_runs
    from mae_ast.report.contents import Choices, contents
    from mae_ast.report.page import write_page
    from mae_ast.report.reconstructions import Excerpts
    from mae_ast.report.studies import split_studies

    folders, studies = split_studies(runs)
    found = read_runs(folders, data)
    chosen = Choices(title, Excerpts(clips, seconds), labels, timing, usable_device(device))
    values = contents(found, chosen, bar("making the page", "part"), studies)
    size = write_page(values, out)
    for name, note in values["notes"]:
        typer.echo(f"{name}: {note}" if name else note, err=True)
    typer.echo(f"{out}: {readable(size)}")


def _check(out: Path, data: Path | None, labels: Path | None, seconds: float) -> None:
    """Check options before work starts, and make the folder of the page.

    Raises:
        ValueError: an option is invalid.
        NotADirectoryError: ``--data`` is no folder.
        FileNotFoundError: a file of ``--labels`` does not exist.
    """
    if out.is_dir() or out.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"--out {out}: a file whose name ends in .html is needed")
    if not seconds > 0:
        raise ValueError(f"--seconds {seconds:g}; a positive number is needed")
    if data is not None and not data.is_dir():
        raise NotADirectoryError(f"--data {data}: no such folder")
    needed = ("labels.csv", "valid.tsv", "valid.lbl")
    missing = [name for name in needed if labels is not None and not (labels / name).is_file()]
    if missing:
        raise FileNotFoundError(f"--labels {labels}: has no {' and no '.join(missing)}")
    out.parent.mkdir(parents=True, exist_ok=True)
