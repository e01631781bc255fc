"""Load the models of a command onto its device."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import nn

from mae_ast.core.io.first_line import first_line
from mae_ast.core.models.encoder import Encoder
from mae_ast.core.nn.malloc import keep_freed_memory
from mae_ast.core.nn.precision import resolve_precision
from mae_ast.finetune.checkpoint import FineTuned, load_finetuned

if TYPE_CHECKING:
    from mae_ast.hub.load import Pretrained

M = TypeVar("M", bound=nn.Module)


def load_classifier(
    source: Path, average: int, device: str | None, precision: str = "float32"
) -> FineTuned:
    """Load a fine-tuned classifier, from the arguments of a command; see :func:`place`."""
    classifier = load_finetuned(source, average)
    place(classifier.model, device)
    compute_in(classifier.model.encoder, precision)
    return classifier


def load_model(source: str, device: str | None, precision: str) -> Pretrained:
    """Load a model for feature extraction, from the arguments of a command; see :func:`place`."""
    from mae_ast.hub.load import load

    model = place(load(source), device)
    compute_in(model, precision)
    return model


def place(model: M, device: str | None) -> M:
    """Move a model to the device of ``--device``; ``None``: a GPU if available.

    On a CPU, freed memory is kept for the next batch, see :mod:`mae_ast.core.nn.malloc`.

    Raises:
        ValueError: there is no such device.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cpu":
        keep_freed_memory()
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {device}: {first_line(error)}") from error


def usable_device(device: str | None) -> str:
    """Return the device of ``--device``; ``None``: a GPU if available.

    Raises:
        ValueError: there is no such device.
    """
    return str(next(place(nn.Linear(1, 1), device).parameters()).device)


def compute_in(encoder: Encoder, precision: str) -> None:
    """Set the dtype of ``--precision``.

    Raises:
        ValueError: it is unknown, or the device does not support it in hardware.
    """
    device_type = encoder.batch_norm.running_mean.device.type
    try:
        encoder.precision = resolve_precision(precision, device_type)
    except ValueError as error:
        raise ValueError(f"--{error}") from error
