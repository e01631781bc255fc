"""``mae-ast reconstruct CHECKPOINT FILE...``: plot reconstructions of masked spectrograms."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mae_ast.cli.options import AudioFiles, Checkpoint, seed_option
from mae_ast.cli.skipped import for_each_file, numbered

if TYPE_CHECKING:
    from torch import Tensor

    from mae_ast.core.frontend.masking import MaskIds
    from mae_ast.hub.load import PretrainedMasked

DEFAULT_IMAGE, DEFAULT_FOLDER = Path("reconstruction.png"), Path("reconstructions")


def reconstruct(
    checkpoint: Checkpoint,
    files: AudioFiles,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "--output",
            "-o",
            help="Image to write, or folder for one image per file; default: "
            f"{DEFAULT_IMAGE}, or {DEFAULT_FOLDER} for several files.",
        ),
    ] = None,
    start: Annotated[float, typer.Option(min=0, help="Start of the excerpt, in seconds.")] = 0.0,
    seconds: Annotated[float, typer.Option(help="Length of the excerpt, in seconds.")] = 10.0,
    mask_type: Annotated[
        str | None, typer.Option(help="Mask type; default: the one used in training.")
    ] = None,
    ratio: Annotated[
        float | None, typer.Option(help="Fraction of patches to mask; default: as in training.")
    ] = None,
    seed: Annotated[int, seed_option("mask")] = 0,
) -> None:
    """Plot the reconstruction of a masked spectrogram.

    Shows the spectrogram, its visible patches, and the model's reconstruction of the masked ones.

    If several files are given, unreadable ones are reported and skipped; the exit status is then 1.
    """
    from mae_ast.console import require
    from mae_ast.core.frontend.collate import clip_generator
    from mae_ast.core.frontend.fbank import num_frames
    from mae_ast.core.frontend.masking import check_mask, mask_strategy
    from mae_ast.hub.load import load_masked

    require("matplotlib")
    images = _images(files, out)
    if seconds <= 0:
        raise ValueError(f"--seconds {seconds:g}; a positive number is needed")
    model = load_masked(checkpoint)
    kind = mask_type or str(model.mask_type)
    ratio = model.config.random_mask_prob if ratio is None else ratio
    shape = model.config.patch_shape
    check_mask(kind, ratio, shape.per_column)
    draw = mask_strategy(kind, model.config.mask_length)

    def write_image(index: int, file: Path) -> None:
        samples = _excerpt(file, start, seconds, shape.min_samples)
        grid = shape.grid(num_frames(len(samples)))
        mask = draw(1, grid, ratio, generator=clip_generator(seed, 0, 0))
        score = _plot(model, samples, mask, file.name, images[index])
        typer.echo(f"{numbered(index, files)}{images[index]}: {score}")

    for_each_file(files, write_image)


def _excerpt(file: Path, start: float, seconds: float, min_samples: int) -> Tensor:
    """Read an excerpt, (L,) int16, of at least one patch."""
    from mae_ast.core.io.audio import SAMPLE_RATE, AudioError, read_audio

    samples = read_audio(file, round(start * SAMPLE_RATE), round(seconds * SAMPLE_RATE))
    if len(samples) < min_samples:
        raise AudioError(
            f"{file}: {len(samples)} samples at 16 kHz from {start:g} s on are shorter than one "
            f"patch ({min_samples})"
        )
    return samples


def _plot(model: PretrainedMasked, samples: Tensor, mask: MaskIds, title: str, image: Path) -> str:
    """Write the image of a clip, (L,); return the fraction of masked patches and their error."""
    from torch.nn.functional import mse_loss

    from mae_ast.core.inference.reconstruct import reconstruct as rebuild
    from mae_ast.evaluate.drawing import save_figure
    from mae_ast.evaluate.plots import reconstruction_figure

    rebuilt = rebuild(model, samples.unsqueeze(0), mask)
    image.parent.mkdir(parents=True, exist_ok=True)
    save_figure(reconstruction_figure(rebuilt, [title]), image)
    error = mse_loss(rebuilt.rebuilt, rebuilt.original)
    masked = rebuilt.visible.isnan().float().mean()
    return f"{masked:.0%} masked, mean squared error there {error / masked:.4f}"


def _images(files: list[Path], out: Path | None) -> list[Path]:
    """Return the path of each file's image; equal names in a folder are numbered.

    Raises:
        ValueError: several files are given, but a single image.
    """
    if len(files) == 1 and (out is None or (out.suffix and not out.is_dir())):
        return [out or DEFAULT_IMAGE]
    folder = out or DEFAULT_FOLDER
    if folder.suffix.lower() == DEFAULT_IMAGE.suffix or folder.is_file():
        raise ValueError(f"--out {folder}: a folder is needed for {len(files)} files")
    images: list[Path] = []
    for file in files:
        numbers = itertools.chain([""], (f"_{n}" for n in itertools.count(2)))
        names = (folder / f"{file.stem}{number}{DEFAULT_IMAGE.suffix}" for number in numbers)
        images.append(next(image for image in names if image not in images))
    return images
