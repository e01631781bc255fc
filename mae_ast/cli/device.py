"""Where a command computes."""

from __future__ import annotations

import torch

from mae_ast.pretrained import Pretrained


def place(model: Pretrained, device: str) -> Pretrained:
    """Move a model to the device of ``--device``; empty: a GPU where there is one.

    Raises:
        ValueError: there is no such device.
    """
    try:
        return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {device}: {str(error).splitlines()[0]}") from error
