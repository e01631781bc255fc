"""``mae-ast pack MANIFEST OUT``: pack files into tar shards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mae_ast.cli.options import Jobs, ManifestFile
from mae_ast.core.io.plural import plural

MAX_LISTED = 10  # maximum number of damaged files to print


def pack(
    manifest: ManifestFile,
    out: Annotated[
        Path | None, typer.Argument(metavar="OUT", help="Folder for the shards and their manifest.")
    ] = None,
    shard_size: Annotated[str, typer.Option(help="Size of a shard, such as 500M or 1G.")] = "1G",
    transcode: Annotated[
        bool,
        typer.Option(
            "--transcode", help="Transcode to 16 kHz mono FLAC; default: copy the files unchanged."
        ),
    ] = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Read all clips back and compare checksums; with --transcode or segments, also "
            "compare their samples with the original files. Without OUT, verify the clips of "
            "MANIFEST.",
        ),
    ] = False,
    jobs: Jobs = 8,
) -> None:
    """Pack the files of a manifest into uncompressed tars.

    Segments of a file are cut out of it, as 16 kHz mono FLAC. Labels in NAME.lbl and labels.csv are
    copied, so that OUT replaces the folder of the manifest.
    The same command again resumes an interrupted packing.
    """
    from mae_ast.console import bar
    from mae_ast.core.io.manifest import Manifest
    from mae_ast.prepare import pack as packing

    if out is None and not verify:
        raise ValueError(
            "OUT is missing, the folder for the shards; only --verify works without it"
        )
    sources = None
    if out is not None:
        shard_bytes = packing.parse_bytes(shard_size)
        listed = Manifest.load(manifest, bar("reading sample rates", "file"))
        packed = packing.pack(listed, out, shard_bytes, transcode, jobs, bar("packing", "clip"))
        manifest = packed.manifest
        shards = plural(packed.num_shards, "shard")
        typer.echo(f"{manifest}: {plural(packed.num_clips, 'clip')} in {shards}")
        if packed.skipped_list is not None:
            skipped = plural(len(listed) - packed.num_clips, "file")
            typer.echo(f"skipped {skipped}, listed in {packed.skipped_list}", err=True)
        if verify and (transcode or listed.has_segments):
            sources = packing.sources_of(listed, packed)
    if verify:
        listed = Manifest.read(manifest)
        listed.check_paths()
        damaged = packing.verify(listed, jobs, bar("verifying", "clip"), sources)
        for row in sorted(damaged)[:MAX_LISTED]:
            path = listed.audio_path(row)
            typer.echo(f"{listed.where(row)}: {path}: {damaged[row]}", err=True)
        if damaged:
            verb = "is" if len(damaged) == 1 else "are"
            clips = plural(len(listed), "clip")
            raise ValueError(f"{manifest}: {len(damaged)} of {clips} {verb} damaged")
        typer.echo(f"{manifest}: {plural(len(listed), 'clip')} verified")
