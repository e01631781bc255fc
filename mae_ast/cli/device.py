"""Load the models of a command onto its device."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from mae_ast.core.io.first_line import first_line
from mae_ast.finetune.checkpoint import FineTuned, load_finetuned

M = TypeVar("M", bound=nn.Module)


def load_classifier(source: Path, average: int, device: str | None) -> FineTuned:
    """Load a fine-tuned classifier, from the arguments of a command; see :func:`place`."""
    classifier = load_finetuned(source, average)
    place(classifier.model, device)
    return classifier


def place(model: M, device: str | None) -> M:
    """Move a model to the device of ``--device``; ``None``: a GPU if available.

    Raises:
        ValueError: there is no such device.
    """
    try:
        return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {device}: {first_line(error)}") from error
