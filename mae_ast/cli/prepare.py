"""``mae-ast prepare DATASET DIR``: write manifests and labels of a known data set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mae_ast.cli.options import Choice, Jobs
from mae_ast.cli.skipped import report_skipped
from mae_ast.core.io.plural import plural

if TYPE_CHECKING:
    from mae_ast.prepare.splits import Prepared


class DataSet(Choice):
    """Data sets that can be prepared."""

    ESC50 = "esc50"
    SPEECHCOMMANDS1 = "speechcommands1"
    SPEECHCOMMANDS2 = "speechcommands2"
    AUDIOSET = "audioset"
    LIBRISPEECH = "librispeech"
    VOXCELEB1 = "voxceleb1"


class AudioSetTrain(Choice):
    """AudioSet's training sets."""

    BALANCED = "balanced"
    UNBALANCED = "unbalanced"
    FULL = "full"


def prepare(
    data_set: Annotated[
        DataSet,
        typer.Argument(metavar="DATASET", help=f"Name of the data set: {', '.join(DataSet)}."),
    ],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the unpacked data set.")],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the manifests; default: manifests/DATASET.", show_default=False
        ),
    ] = None,
    classes: Annotated[
        int | None,
        typer.Option(
            help="Number of classes of Speech Commands: 12, 30 or 35; default: 12 for version 1, "
            "35 for version 2."
        ),
    ] = None,
    train: Annotated[
        AudioSetTrain | None, typer.Option(help="Training set of AudioSet; default: balanced.")
    ] = None,
    speakers: Annotated[
        bool, typer.Option("--speakers", help="Label LibriSpeech with its speakers.")
    ] = False,
    jobs: Jobs = 16,
) -> None:
    """Write manifests and labels of a known data set.

    Writes train.tsv, valid.tsv and test.tsv, the labels of each clip (NAME.lbl), and labels.csv.
    ESC-50 gets a folder for each of its five folds; AudioSet's valid.tsv is the evaluation set.
    Clips of the data set that are missing are listed in missing.txt, unreadable files in
    left_out.txt.
    """
    from mae_ast.prepare import audioset, esc50, librispeech, speechcommands, voxceleb1

    is_words = data_set in (DataSet.SPEECHCOMMANDS1, DataSet.SPEECHCOMMANDS2)
    for option, given, fits in (
        ("--classes", classes is not None, is_words),
        ("--train", train is not None, data_set is DataSet.AUDIOSET),
        ("--speakers", speakers, data_set is DataSet.LIBRISPEECH),
    ):
        if given and not fits:
            raise ValueError(f"{option} is not supported for {data_set}")
    out = out or Path("manifests") / data_set
    match data_set:
        case DataSet.ESC50:
            done = esc50.prepare(folder, out, jobs)
        case DataSet.SPEECHCOMMANDS1:
            done = speechcommands.prepare(folder, out, 1, classes, jobs)
        case DataSet.SPEECHCOMMANDS2:
            done = speechcommands.prepare(folder, out, 2, classes, jobs)
        case DataSet.AUDIOSET:
            done = audioset.prepare(folder, out, train or AudioSetTrain.BALANCED, jobs)
        case DataSet.LIBRISPEECH:
            done = librispeech.prepare(folder, out, speakers, jobs)
        case DataSet.VOXCELEB1:
            done = voxceleb1.prepare(folder, out, jobs)
    _report(done)


def _report(done: Prepared) -> None:
    from mae_ast.prepare.clips import SKIPPED_FILE
    from mae_ast.prepare.splits import MISSING_FILE

    for split in done.splits:
        clips, hours = plural(split.clips, "clip"), split.seconds / 3600
        line = f"{done.out / split.name}.tsv: {clips}, {hours:.2f} h"
        if done.num_classes:
            of = f"{split.classes} of " if split.classes < done.num_classes else ""
            line += f", {of}{plural(done.num_classes, 'class', 'classes')}"
        typer.echo(line + (f", {split.missing} missing" if split.missing else ""))
    for note in done.notes:
        typer.echo(note)
    if done.missing:
        typer.echo(
            f"{plural(len(done.missing), 'clip')} missing, listed in {done.out / MISSING_FILE}",
            err=True,
        )
    report_skipped(done.skipped, done.out / SKIPPED_FILE)
