"""``mae-ast predict RUN_OR_CHECKPOINT FILE...``: classify audio files, as a whole or over time."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mae_ast.cli.options import Average, Classifier, Device, Precision
from mae_ast.cli.skipped import for_each_file, numbered
from mae_ast.core.io.plural import plural

if TYPE_CHECKING:
    from mae_ast.evaluate.timeline import Windows
    from mae_ast.finetune.checkpoint import FineTuned

FORMATS = ("csv", "audacity", "raven")
SETTINGS_FILE = "timeline.json"


Recordings = Annotated[
    list[Path],
    typer.Argument(metavar="FILE", help="Audio files in any format, or folders of them."),
]
Top = Annotated[
    int, typer.Option(min=1, help="Number of labels per file; with --window, at a time.")
]
WindowLength = Annotated[
    float | None,
    typer.Option(help="Label files over time, in windows of this length in seconds."),
]
Hop = Annotated[
    float | None,
    typer.Option(help="Seconds between the starts of windows; default: half of --window."),
]
Threshold = Annotated[
    float | None,
    typer.Option(
        help="Minimum score of a label over time; default: 0.5 for classifiers with several "
        "labels per clip, else 0."
    ),
]
Format = Annotated[
    str,
    typer.Option(
        help="Format of the tables over time: csv (start, end, label, score), audacity (label "
        "track) or raven (selection table).",
        autocompletion=lambda incomplete: [f for f in FORMATS if f.startswith(incomplete)],
    ),
]
Out = Annotated[Path, typer.Option(help="Folder for tables and plots over time.")]
Plot = Annotated[
    bool, typer.Option("--plot/--no-plot", help="Plot labels over time and spectrogram.")
]


def predict(
    source: Classifier,
    recordings: Recordings,
    top: Top = 5,
    window: WindowLength = None,
    hop: Hop = None,
    threshold: Threshold = None,
    format: Format = "csv",  # noqa: A002
    out: Out = Path("timelines"),
    plot: Plot = True,
    average: Average = 1,
    device: Device = None,
    precision: Precision = "float32",
) -> None:
    """Print the most likely labels of audio files, or with --window write labels over time.

    Each line has a file, a score and a label, separated by tabs. A file longer than the network's
    input is scored in windows up to its end; its score is the mean of their probabilities.

    With --window, a table and a plot are written for each file, of any length. The score of a
    moment is the mean over the windows that cover it; adjacent moments with the same label are
    merged. For several files, the same command again resumes.

    If several files are given, unreadable ones are reported and skipped; the exit status is then 1.
    """
    from mae_ast.cli.device import load_classifier

    over_time = {"--hop": hop, "--threshold": threshold}
    if window is None:
        if given := [name for name, value in over_time.items() if value is not None]:
            raise ValueError(f"{given[0]} needs --window")
        listed = [file for file, _ in _listed(recordings)]
        _print_labels(load_classifier(source, average, device, precision), listed, top)
        return
    from mae_ast.evaluate.timeline import Windows

    windows = Windows(window, window / 2 if hop is None else hop, threshold, top)
    if format not in FORMATS:
        raise ValueError(f"--format {format}: choose from {', '.join(FORMATS)}")
    targets = _listed(recordings)
    out.mkdir(parents=True, exist_ok=True)  # fails before the model is loaded
    classifier = load_classifier(source, average, device, precision)
    if len(targets) > 1:
        _check_same_settings(classifier, windows, out)
    _write_timelines(classifier, windows, targets, out, format, plot)


def _print_labels(classifier: FineTuned, files: list[Path], top: int) -> None:
    from mae_ast.evaluate.predict import score_files

    found = score_files(classifier, files)

    def print_scores(index: int, file: Path) -> None:
        scores = next(found)
        if isinstance(scores, Exception):
            raise scores
        for label in scores.argsort()[::-1][:top]:
            typer.echo(f"{file}\t{scores[label]:.4f}\t{classifier.labels.names[label]}")

    for_each_file(files, print_scores)


def _write_timelines(
    classifier: FineTuned,
    windows: Windows,
    targets: list[tuple[Path, Path]],
    out: Path,
    format: str,  # noqa: A002
    plot: bool,
) -> None:
    from mae_ast.console import advice, bar
    from mae_ast.evaluate.timeline import FORMATS, label_over_time, write_table

    if plot and importlib.util.find_spec("matplotlib") is None:
        typer.echo(f"no plots: {advice('matplotlib')}", err=True)
        plot = False
    files = [file for file, _ in targets]
    names = classifier.labels.names
    suffix = FORMATS[format][0]

    def write(index: int, file: Path) -> None:
        base = out / targets[index][1]
        table, image = (base.with_name(base.name + end) for end in (suffix, ".png"))
        if len(files) > 1 and table.exists():  # written last
            typer.echo(f"{numbered(index, files)}{table}: exists already")
            return
        base.parent.mkdir(parents=True, exist_ok=True)
        progress = bar(f"{numbered(index, files)}{file.name}", "window")
        found = label_over_time(classifier, file, windows, plot, progress)
        if plot:
            from mae_ast.evaluate.drawing import save_figure
            from mae_ast.evaluate.timeline_figure import timeline_figure

            save_figure(timeline_figure(found, names, file.name), image)
        write_table(table, format, found.segments, names)
        written = f"{table}{f', {image}' if plot else ''}"
        count = plural(len(found.segments), "segment")
        typer.echo(f"{numbered(index, files)}{written}: {count} in {found.duration_s:.1f} s")

    for_each_file(files, write)


def _check_same_settings(classifier: FineTuned, windows: Windows, out: Path) -> None:
    """Record the settings of a folder, so that only the same ones resume it.

    Raises:
        ValueError: the folder was started with others.
    """
    from dataclasses import asdict

    from mae_ast.core.io.settings_note import assert_same_as_note, write_note
    from mae_ast.evaluate.extract import digest_of_weights

    encoder = classifier.model.encoder
    settings = {
        **asdict(windows),
        "precision": encoder.precision,
        "weights": digest_of_weights(classifier.model),
    }
    note = out / SETTINGS_FILE
    if note.exists():
        assert_same_as_note(note, settings, "choose another folder (--out)")
    else:
        write_note(note, settings)


def _listed(paths: list[Path]) -> list[tuple[Path, Path]]:
    """Return files, and those below folders, with the path of each output without its suffix.

    Links to folders are followed; hidden files are not listed.
    Outputs lie like the files below their folder; equal names are numbered.

    Raises:
        FileNotFoundError: a folder has no files with the suffix of an audio format.
    """
    from mae_ast.core.io.suffixes import AUDIO_SUFFIXES
    from mae_ast.prepare.layout import walk_files

    found: list[tuple[Path, Path]] = []
    for path in paths:
        if not path.is_dir():
            found.append((path, Path(path.name)))
            continue
        files = (Path(parent, name) for parent, name in walk_files(path) if name[0] != ".")
        below = sorted(each for each in files if each.suffix.lower() in AUDIO_SUFFIXES)
        if not below:
            raise FileNotFoundError(f"{path}: no audio files in this folder")
        found += [(each, each.relative_to(path)) for each in below]
    bases = [
        output.with_suffix("") if output.suffix.lower() in AUDIO_SUFFIXES else output
        for _, output in found
    ]
    unnumbered = set(bases)
    outputs: dict[Path, Path] = {}
    for (file, _), base in zip(found, bases, strict=True):
        output, number = base, 1
        while output in outputs or (number > 1 and output in unnumbered):
            number += 1
            output = base.with_name(f"{base.name}_{number}")
        outputs[output] = file
    return [(file, output) for output, file in outputs.items()]
