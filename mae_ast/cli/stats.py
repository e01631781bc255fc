"""``mae-ast stats MANIFEST``: compute input statistics."""

from __future__ import annotations

from typing import Annotated

import typer

from mae_ast.cli.options import Jobs, ManifestFile, seed_option
from mae_ast.console import bar
from mae_ast.core.io.plural import plural

MAX_SECONDS = 30.0  # read of each clip


def stats(
    manifest: ManifestFile,
    max_files: Annotated[
        int, typer.Option(min=1, help="Maximum number of clips, drawn at random.")
    ] = 10_000,
    seed: Annotated[int, seed_option("random draw")] = 0,
    window: Annotated[
        str,
        typer.Option(
            help="Window of the filterbank: povey for MAE-AST, hanning for the other systems."
        ),
    ] = "povey",
    jobs: Jobs = 4,
) -> None:
    """Compute the mean and std of log-mel over a manifest.

    Prints the settings that make training normalise every clip by them, independent of its batch.
    """
    import numpy as np
    import torch

    from mae_ast.core.frontend.fbank import NUM_MEL_BINS, WINDOW_POWERS
    from mae_ast.core.frontend.input_stats import mean_and_std, moments
    from mae_ast.core.io.audio import SAMPLE_RATE
    from mae_ast.core.io.manifest import Manifest
    from mae_ast.core.io.read_ahead import map_ahead
    from mae_ast.evaluate.read_clips import read_or_skip

    if window not in WINDOW_POWERS:
        raise ValueError(f"--window {window}; it is one of {', '.join(WINDOW_POWERS)}")
    listed = Manifest.read(manifest)
    listed.check_paths()
    listed.check_segments()
    rows = np.random.default_rng(seed).permutation(len(listed))[:max_files].tolist()

    def clip_moments(row: int) -> torch.Tensor:
        samples = read_or_skip(listed, row, 0, int(MAX_SECONDS * SAMPLE_RATE))
        return torch.zeros(3, dtype=torch.float64) if samples is None else moments(samples, window)

    found = map_ahead(clip_moments, rows, jobs, jobs)
    sums = torch.stack(list(bar("computing log-mel", "clip")(found, len(rows))))
    total = sums.sum(dim=0)
    if not total[0]:
        raise ValueError(f"{manifest}: none of {plural(len(rows), 'clip')} could be decoded")
    try:
        mean, std = mean_and_std(total)
    except ValueError as error:
        raise ValueError(f"{manifest}: {error}") from error
    num_bad = int((sums[:, 0] == 0).sum())
    hours = float(total[0]) / NUM_MEL_BINS / 100 / 3600
    typer.echo(
        f"{plural(len(rows) - num_bad, 'clip')}, {hours:.2f} h, {num_bad} skipped as bad", err=True
    )
    typer.echo(f"model.input_stats=fixed model.input_mean={mean:.6f} model.input_std={std:.6f}")
