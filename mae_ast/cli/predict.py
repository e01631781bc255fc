"""``mae-ast predict RUN_OR_CHECKPOINT FILE...``: classify audio files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mae_ast.cli.options import AudioFiles, Average, Classifier, Device, Precision
from mae_ast.cli.skipped import for_each_file


def predict(
    source: Classifier,
    files: AudioFiles,
    top: Annotated[int, typer.Option(min=1, help="Number of labels per file.")] = 5,
    average: Average = 1,
    device: Device = None,
    precision: Precision = "float32",
) -> None:
    """Print the most likely labels of audio files.

    Each line has a file, a score and a label, separated by tabs. A file longer than the network's
    input is scored in windows up to its end; its score is the mean of their probabilities.

    If several files are given, unreadable ones are reported and skipped; the exit status is then 1.
    """
    from mae_ast.cli.device import load_classifier
    from mae_ast.evaluate.predict import score_files

    classifier = load_classifier(source, average, device, precision)
    found = score_files(classifier, files)

    def print_scores(index: int, file: Path) -> None:
        scores = next(found)
        if isinstance(scores, Exception):
            raise scores
        for label in scores.argsort()[::-1][:top]:
            typer.echo(f"{file}\t{scores[label]:.4f}\t{classifier.labels.names[label]}")

    for_each_file(files, print_scores)
