"""``mae-ast manifest DIR...``: manifests of the audio below folders and in tars."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mae_ast.cli.options import Jobs
from mae_ast.core.io.plural import plural

if TYPE_CHECKING:
    from mae_ast.prepare.folders import Found, SkippedFile, UsableFile

MAX_LISTED = 10  # maximum number of reasons for skipping files, and of wrong headers, to print
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
    seed: Annotated[int, typer.Option(help="Seed of the split.")] = 0,
    jobs: Jobs = 16,
) -> None:
    """Write manifests of the audio in folders and tars.

    Uncompressed tars, such as WebDataset's shards, are read like folders, without unpacking.
    Unreadable files are listed, files with other suffixes are counted. Lengths come from the
    headers; files whose header has none, or a wrong one, are decoded.

    A file's split depends only on its path below DIR and the seed, so adding files or folders does
    not change it.
    """
    from mae_ast.core.io.manifest import write_manifest
    from mae_ast.prepare.folders import find_audio, manifest_rows, probe_files, split_files

    if valid < 0 or test < 0 or valid + test >= 1:
        raise ValueError(f"--valid {valid} and --test {test} leave nothing for training")
    for folder in folders:
        if not folder.is_dir():
            raise NotADirectoryError(f"{folder}: no such folder")
    folders = [folder.resolve() for folder in folders]
    root = Path(os.path.commonpath(folders))
    found = find_audio(folders, jobs)
    if not found.audio and not found.damaged:
        there = found.describe_others() or "nothing"
        raise ValueError(f"no audio files below {', '.join(map(str, folders))}; found {there}")
    usable, skipped = probe_files(found.audio, min_seconds, max_seconds, jobs)
    skipped = [*found.damaged, *skipped]
    if not usable:
        raise ValueError(
            f"none of {plural(len(skipped), 'file')} is usable; the first: {skipped[0].problem}"
        )
    out.mkdir(parents=True, exist_ok=True)
    splits = split_files(usable, folders, valid, test, seed)
    for name in {"train", "valid", "test"} - set(splits):
        if (out / f"{name}.tsv").exists():
            raise ValueError(
                f"{out / name}.tsv is there from before and would stay, though its files may now "
                "be in another split; remove it, or choose another --out"
            )
    for name, files in splits.items():
        write_manifest(out / f"{name}.tsv", str(root), manifest_rows(files, root))
        seconds = [file.seconds for file in files]
        hours = sum(seconds) / 3600
        typer.echo(f"{out / name}.tsv: {plural(len(files), 'file')}, {hours:.2f} h")
        _report_short(seconds)
    _report_headers(usable, out)
    _report_skipped(skipped, found, out)


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


def _report_headers(files: Sequence[UsableFile], out: Path) -> None:
    """Report files whose length was measured because their header gives none or a wrong one."""
    noted = [(file.path, file.info.note) for file in files if file.info.note]
    if not noted:
        return
    report = out / "headers.txt"
    report.write_text(
        "".join(f"{path}\t{note}\n" for path, note in noted), errors="surrogateescape"
    )
    typer.echo(
        f"{plural(len(noted), 'file')} with no length or a wrong one in the header, listed with "
        f"the true length; see {report}:",
        err=True,
    )
    for path, note in noted[:MAX_LISTED]:
        typer.echo(f"  {path}: {note}", err=True)


def _report_skipped(files: Sequence[SkippedFile], found: Found, out: Path) -> None:
    """Report files that are not listed, and audio that may be listed twice."""
    loose = len(found.audio) - found.num_in_tars
    if found.tars and loose:
        typer.echo(
            f"found {plural(loose, 'audio file')} and {plural(len(found.tars), 'tar')}; where a "
            "tar holds the same files, they are listed twice",
            err=True,
        )
    if found.others:
        typer.echo(f"skipped, by suffix: {found.describe_others()}", err=True)
    if not files:
        return
    report = out / "left_out.txt"
    report.write_text(
        "".join(f"{file.path}\t{file.problem}\n" for file in files), errors="surrogateescape"
    )
    typer.echo(f"skipped {plural(len(files), 'file')}, listed in {report}:", err=True)
    for problem, count in Counter(file.problem for file in files).most_common(MAX_LISTED):
        example = next(file.path for file in files if file.problem == problem)
        typer.echo(f"  {count} x {problem} (such as {example})", err=True)
