"""``mae-ast manifest DIR...``: manifests of the audio below folders and in tars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mae_ast.cli.options import Jobs, seed_option
from mae_ast.cli.skipped import MAX_LISTED, report_skipped
from mae_ast.core.io.plural import plural

if TYPE_CHECKING:
    from mae_ast.prepare.folders import Found

PRETRAINING_S = 2.0  # task.min_sample_size of the presets for pretraining


def manifest(
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="DIR", help="Folders of audio files, or of tars with audio files."),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the manifests.")] = Path("manifests"),
    valid: Annotated[float, typer.Option(help="Fraction of files for validation.")] = 0.01,
    test: Annotated[float, typer.Option(help="Fraction of files for test.")] = 0.0,
    min_seconds: Annotated[
        float,
        typer.Option(
            help="Minimum length of a file, in seconds. A model needs one patch (0.175 s; with "
            "frame patches 0.035 s); pretraining skips clips below task.min_sample_size, 2 s by "
            "default."
        ),
    ] = 0.045,
    max_seconds: Annotated[
        float, typer.Option(help="Maximum length of a file, in seconds.")
    ] = float("inf"),
    segment: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="List each longer file as segments of this length, without copying audio. The "
            "rest at its end is listed, too, if it has at least --min-seconds.",
        ),
    ] = None,
    seed: Annotated[int, seed_option("split")] = 0,
    jobs: Jobs = 16,
) -> None:
    """Write manifests of the audio in folders and tars.

    Uncompressed tars, such as WebDataset's shards, are read like folders, without unpacking.
    Unreadable files are listed, files with other suffixes are counted. Lengths come from the
    headers; files whose header has none, or a wrong one, are decoded.

    A file's split depends only on its path below DIR and the seed, so adding files or folders does
    not change it. All segments of a file are in one split.
    """
    from mae_ast.prepare.clips import SKIPPED_FILE
    from mae_ast.prepare.folders import write_manifests

    if valid < 0 or test < 0 or valid + test >= 1:
        raise ValueError(f"--valid {valid} and --test {test} leave nothing for training")
    found, headers, splits = write_manifests(
        folders, out, valid, test, min_seconds, max_seconds, seed, jobs, segment
    )
    for name, clips in splits.items():
        seconds = [clip.seconds(headers.infos[clip.path]) for clip in clips]
        files = plural(len({clip.path for clip in clips}), "file")
        listed = files if segment is None else f"{plural(len(clips), 'clip')} of {files}"
        typer.echo(f"{out / name}.tsv: {listed}, {sum(seconds) / 3600:.2f} h")
        _report_short(seconds)
    _report_notes(headers.notes(), out)
    _report_others(found)
    report_skipped(headers.skipped.items(), out / SKIPPED_FILE)


def _report_short(seconds: Sequence[float]) -> None:
    """Report listed files that pretraining skips by default."""
    from mae_ast.core.io.audio import SAMPLE_RATE

    short = [each for each in seconds if each < PRETRAINING_S]
    if short:
        typer.echo(
            f"  {len(short)} of them ({len(short) / len(seconds):.0%}) are shorter than "
            f"{PRETRAINING_S:g} s, which pretraining skips by default; to keep them, lower "
            f"task.min_sample_size={round(PRETRAINING_S * SAMPLE_RATE)} (samples at 16 kHz)",
            err=True,
        )


def _report_notes(notes: Mapping[str, str], out: Path) -> None:
    """Report files whose length was measured because their header gives none or a wrong one."""
    from mae_ast.prepare.folders import NOTES_FILE

    if notes:
        typer.echo(
            f"{plural(len(notes), 'file')} with no length or a wrong one in the header, listed "
            f"with the true length; see {out / NOTES_FILE}:",
            err=True,
        )
    for path, note in islice(notes.items(), MAX_LISTED):
        typer.echo(f"  {path}: {note}", err=True)


def _report_others(found: Found) -> None:
    """Report files that are no audio, and audio that may be listed twice."""
    loose = len(found.audio) - found.num_in_tars
    if found.tars and loose:
        typer.echo(
            f"found {plural(loose, 'audio file')} and {plural(len(found.tars), 'tar')}; where a "
            "tar holds the same files, they are listed twice",
            err=True,
        )
    if found.others:
        typer.echo(f"skipped, by suffix: {found.describe_others()}", err=True)
