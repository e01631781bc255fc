"""Options that several commands have."""

from __future__ import annotations

import typer

MULTIRUN = typer.Option(
    "--multirun",
    "-m",
    help="Start the jobs of a sweep, such as model.encoder_layers=6,12, each in its own folder "
    "OUT/0, OUT/1, ...; or one job in OUT by hydra's launcher, such as SLURM's.",
)
