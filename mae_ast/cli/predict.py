"""``mae-ast predict RUN_OR_CHECKPOINT FILE...``: classify audio files."""

from __future__ import annotations

from typing import Annotated

import typer

from mae_ast.cli.options import AudioFiles, Average, Classifier, Device


def predict(
    source: Classifier,
    files: AudioFiles,
    top: Annotated[int, typer.Option(min=1, help="Number of labels per file.")] = 5,
    average: Average = 1,
    device: Device = None,
) -> None:
    """Print the most likely labels of audio files.

    Each line has a file, a score and a label, separated by tabs. A file longer than the network's
    input is scored in windows up to its end; its score is the mean of their probabilities.

    If several files are given, unreadable ones are reported and skipped; the exit status is then 1.
    """
    from mae_ast.cli.device import place
    from mae_ast.core.io.audio import AudioError
    from mae_ast.evaluate.predict import score_recording
    from mae_ast.finetune.checkpoint import load_finetuned

    classifier = load_finetuned(source, average)
    place(classifier.model, device)
    skipped = 0
    for file in files:
        try:
            scores = score_recording(classifier, file)
        except (AudioError, FileNotFoundError) as error:
            if len(files) == 1:
                raise
            typer.echo(f"skipped: {error}", err=True)
            skipped += 1
            continue
        for index in scores.argsort()[::-1][:top]:
            typer.echo(f"{file}\t{scores[index]:.4f}\t{classifier.labels.names[index]}")
    if skipped:
        raise SystemExit(f"mae-ast: error: {skipped} of {len(files)} files skipped, see above")
