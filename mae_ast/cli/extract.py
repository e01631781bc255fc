"""``mae-ast extract CHECKPOINT MANIFEST OUT``: write the features of a manifest's clips."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mae_ast.cli.options import Checkpoint, Device, ManifestFile, Precision
from mae_ast.core.io.plural import plural


def extract(
    checkpoint: Checkpoint,
    manifest: ManifestFile,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the .npy and .len files.")],
    layer: Annotated[
        int, typer.Option(help="Layer to read the features from, counted from 1; -1 is the last.")
    ] = -1,
    pool: Annotated[
        bool, typer.Option("--pool", help="Write one row per clip: the mean over time steps.")
    ] = False,
    tokens: Annotated[
        bool,
        typer.Option(
            "--tokens", help="Write one row per token (D); default: one per time step (C D)."
        ),
    ] = False,
    shard: Annotated[
        str, typer.Option(metavar="I/N", help="Process part I of N only, counted from 0.")
    ] = "0/1",
    device: Device = None,
    precision: Precision = "float32",
) -> None:
    """Write the features of a manifest's clips.

    The files follow fairseq's convention: OUT/NAME.npy with the rows of all clips, OUT/NAME.len
    with the number of rows of each clip. The same command again resumes an interrupted extraction.
    """
    from mae_ast.cli.device import load_model
    from mae_ast.console import bar
    from mae_ast.core.io.manifest import Manifest
    from mae_ast.evaluate import extract as extraction

    part = extraction.parse_shard(shard)
    listed = Manifest.read(manifest)
    listed.check_paths()
    listed.check_segments()
    model = load_model(checkpoint, device, precision)
    depth = model.config.encoder_layers
    if layer != -1 and not 1 <= layer <= depth:
        raise ValueError(f"--layer {layer}; the model has 1 to {depth}, -1 is the last")
    wanted = extraction.Extraction(depth if layer == -1 else layer, pool, tokens, *part)
    path, num_bad = extraction.extract(model, listed, out, wanted, bar("extracting", "clip"))
    skipped = f", {plural(num_bad, 'clip')} skipped (0 rows)" if num_bad else ""
    typer.echo(f"{path} and {path.with_suffix('.len').name}{skipped}")
