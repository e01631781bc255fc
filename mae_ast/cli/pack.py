"""``mae-ast pack MANIFEST OUT``: a manifest's files to shards, few and large."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mae_ast.core.io.plural import plural

MAX_LISTED = 10  # damaged files that are shown


def pack(
    manifest: Annotated[Path, typer.Argument(help="A manifest, such as train.tsv.")],
    out: Annotated[
        Path | None, typer.Argument(help="Folder for the shards and their manifest.")
    ] = None,
    shard_size: Annotated[str, typer.Option(help="Size of a shard: 500M, 1G, ...")] = "1G",
    transcode: Annotated[
        bool,
        typer.Option(
            "--transcode", help="Transcode to 16 kHz mono FLAC; default: copy files unchanged."
        ),
    ] = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Read all clips back and compare checksums, with --transcode also the samples "
            "with those of the original files; without OUT, check the clips of MANIFEST.",
        ),
    ] = False,
    jobs: Annotated[int, typer.Option(help="Files read, or transcoded, at a time.")] = 8,
) -> None:
    """Pack a manifest's files, with labels beside it, into uncompressed tars.

    OUT then replaces the folder of manifests. If stopped, the same command resumes.
    """
    from mae_ast.console import bar
    from mae_ast.core.io.manifest import Manifest
    from mae_ast.prepare import pack as packing

    if jobs < 1:
        raise ValueError(f"--jobs {jobs}; at least 1")
    if out is None and not verify:
        raise ValueError("no folder OUT to pack to; with --verify alone, none is needed")
    sources = None
    if out is not None:
        shard_bytes = packing.parse_bytes(shard_size)
        listed = Manifest.load(manifest, bar("reading sample rates", "file"))
        packed = packing.pack(listed, out, shard_bytes, transcode, jobs, bar("packing", "clip"))
        manifest = packed.manifest
        shards = plural(packed.num_shards, "shard")
        typer.echo(f"{manifest}: {plural(packed.num_clips, 'clip')} in {shards}")
        if packed.left_out is not None:
            skipped = plural(len(listed) - packed.num_clips, "file")
            typer.echo(f"skipped {skipped}, listed in {packed.left_out}", err=True)
        if verify and transcode:
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
