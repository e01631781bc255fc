"""``mae-ast reconstruct CHECKPOINT FILE -o PNG``: mask most of a recording and reconstruct it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from mae_ast import pictures
from mae_ast.core.audio import SAMPLE_RATE, read_audio
from mae_ast.core.batch import clip_generator
from mae_ast.core.fbank import num_frames
from mae_ast.core.masking import check_mask, mask_strategy
from mae_ast.core.reconstruct import reconstruct as rebuild
from mae_ast.pretrained import load_masked


def reconstruct(
    checkpoint: Annotated[
        str,
        typer.Argument(help="A file, a run's folder, a released model's name, a URL, a hub id."),
    ],
    file: Annotated[Path, typer.Argument(help="Audio of any kind.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Image to write.")] = Path(
        "reconstruction.png"
    ),
    start: Annotated[float, typer.Option(min=0, help="Start of the excerpt, in seconds.")] = 0.0,
    seconds: Annotated[float, typer.Option(help="Length of the excerpt, in seconds.")] = 10.0,
    mask_type: Annotated[
        str | None, typer.Option(help="Mask type; default: the one used in training.")
    ] = None,
    ratio: Annotated[
        float | None, typer.Option(help="Fraction of patches hidden; default: as in training.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the mask.")] = 0,
) -> None:
    """Plot a spectrogram, its visible patches, and the reconstruction of the hidden ones."""
    model = load_masked(checkpoint)
    kind = mask_type or model.mask_type
    share = model.config.random_mask_prob if ratio is None else ratio
    shape = model.config.patch_shape
    if seconds <= 0:
        raise ValueError(f"--seconds {seconds:g}; a positive number is needed")
    check_mask(kind, share, shape.per_column)
    samples = read_audio(file, round(start * SAMPLE_RATE), round(seconds * SAMPLE_RATE))
    if len(samples) < shape.min_samples:
        raise ValueError(
            f"{file}: {len(samples)} samples at 16 kHz from {start:g} s on are shorter than one "
            f"patch ({shape.min_samples})"
        )
    draw = mask_strategy(kind, model.config.mask_length)
    grid = shape.grid(num_frames(len(samples)))
    mask = draw(1, grid, share, generator=clip_generator(seed, 0, 0))
    rebuilt = rebuild(model, samples.unsqueeze(0), mask)
    output.parent.mkdir(parents=True, exist_ok=True)
    pictures.reconstruction_figure(rebuilt, [file.name]).savefig(output, dpi=120)
    error = torch.nn.functional.mse_loss(rebuilt.rebuilt, rebuilt.original)
    hidden = rebuilt.visible.isnan().float().mean()
    typer.echo(f"{output}: {hidden:.0%} hidden, mean squared error there {error / hidden:.4f}")
