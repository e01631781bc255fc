"""``mae-ast prepare DATASET DIR``: write manifests and labels of a data set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from mae_ast.cli import prepare_own
from mae_ast.cli.options import Choice, Jobs
from mae_ast.cli.skipped import report_prepared

DataSetFolder = Annotated[
    Path, typer.Argument(metavar="DIR", help="Folder of the unpacked data set.")
]
Out = Annotated[
    Path | None,
    typer.Option(
        help="Folder for the manifests; default: manifests/NAME of the data set.",
        show_default=False,
    ),
]

SpeechCommandsClasses = Annotated[
    int,
    typer.Option(
        help="Number of classes: 12 (ten commands, unknown, silence), or one for each word: 30 in "
        "version 1, 35 in version 2."
    ),
]


class AudioSetTrain(Choice):
    """AudioSet's training sets."""

    BALANCED = "balanced"
    UNBALANCED = "unbalanced"
    FULL = "full"


def esc50(folder: DataSetFolder, out: Out = None, jobs: Jobs = 16) -> None:
    """Write manifests and labels of ESC-50, a folder for each of its five folds."""
    from mae_ast.prepare import esc50

    report_prepared(esc50.prepare(folder, out or Path("manifests/esc50"), jobs))


def speechcommands1(
    folder: DataSetFolder,
    out: Out = None,
    classes: SpeechCommandsClasses = 12,
    jobs: Jobs = 16,
) -> None:
    """Write manifests and labels of Speech Commands version 1."""
    from mae_ast.prepare import speechcommands

    out = out or Path("manifests/speechcommands1")
    report_prepared(speechcommands.prepare(folder, out, 1, classes, jobs))


def speechcommands2(
    folder: DataSetFolder,
    out: Out = None,
    classes: SpeechCommandsClasses = 35,
    jobs: Jobs = 16,
) -> None:
    """Write manifests and labels of Speech Commands version 2."""
    from mae_ast.prepare import speechcommands

    out = out or Path("manifests/speechcommands2")
    report_prepared(speechcommands.prepare(folder, out, 2, classes, jobs))


def audioset(
    folder: DataSetFolder,
    out: Out = None,
    train: Annotated[
        AudioSetTrain, typer.Option(help="Training set: balanced, unbalanced or both.")
    ] = AudioSetTrain.BALANCED,
    jobs: Jobs = 16,
) -> None:
    """Write manifests and labels of AudioSet; valid.tsv is the evaluation set."""
    from mae_ast.prepare import audioset

    report_prepared(audioset.prepare(folder, out or Path("manifests/audioset"), train, jobs))


def librispeech(
    folder: DataSetFolder,
    out: Out = None,
    speakers: Annotated[
        bool, typer.Option("--speakers", help="Label the recordings with their speakers.")
    ] = False,
    jobs: Jobs = 16,
) -> None:
    """Write manifests of LibriSpeech, which has labels on demand only."""
    from mae_ast.prepare import librispeech

    report_prepared(
        librispeech.prepare(folder, out or Path("manifests/librispeech"), speakers, jobs)
    )


def voxceleb1(folder: DataSetFolder, out: Out = None, jobs: Jobs = 16) -> None:
    """Write manifests and labels of VoxCeleb1, a class per speaker."""
    from mae_ast.prepare import voxceleb1

    report_prepared(voxceleb1.prepare(folder, out or Path("manifests/voxceleb1"), jobs))


# Heading in the help to functions; the name of a function is that of its command.
COMMANDS: dict[str, tuple[Callable[..., None], ...]] = {
    "Your own data": (prepare_own.folders, prepare_own.table),
    "Known data sets": (
        *(esc50, speechcommands1, speechcommands2, audioset),
        *(librispeech, voxceleb1),
    ),
}
app = typer.Typer(no_args_is_help=True)
for _panel, _functions in COMMANDS.items():
    for _function in _functions:
        app.command(rich_help_panel=_panel)(_function)


@app.callback()
def prepare() -> None:
    """Write manifests and labels of a data set.

    Writes train.tsv, valid.tsv and test.tsv, the labels of each clip (NAME.lbl), and labels.csv.
    Listed clips that are missing are listed in missing.txt, unreadable files in left_out.txt.
    """
