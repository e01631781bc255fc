"""Device that a command computes on."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from mae_ast.core.io.first_line import first_line

M = TypeVar("M", bound=nn.Module)


def place(model: M, device: str | None) -> M:
    """Move a model to the device of ``--device``; ``None``: a GPU if available.

    Raises:
        ValueError: there is no such device.
    """
    try:
        return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {device}: {first_line(error)}") from error
