"""Checkpoints without fairseq: a file that the trainer wrote -> a model in eval mode."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch

from mae_ast.core.config import MaeAstConfig
from mae_ast.core.mae_ast import MaeAst


class CheckpointError(ValueError):
    """A file that is no checkpoint of this project; the message names it and says why."""


@dataclass(frozen=True)
class Loaded:
    """A model and how it was trained.

    Args:
        model: in eval mode, on the CPU.
        config: what it is made of.
        mask_type: the masking it was trained with.
    """

    model: MaeAst
    config: MaeAstConfig
    mask_type: str


def load_checkpoint(path: str | os.PathLike[str]) -> Loaded:
    """Load a model that was trained here; nothing in the file is executed.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is damaged, is no such checkpoint, or its keys do not fit its model.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such checkpoint")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{path}: is no checkpoint that can be read safely ({reason})"
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: holds a {type(state).__name__}, not a checkpoint")
    try:
        config = MaeAstConfig.from_mapping(state["cfg"]["model"])
        mask_type = str(state["cfg"]["task"]["mask_type"])
        weights = state["model"]
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: has no {error}; a pretraining checkpoint does") from error
    try:
        model = MaeAst(config)
        model.load_state_dict(weights, strict=True)
    except (RuntimeError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: {' '.join(str(error).split())}") from error
    return Loaded(model.eval(), config, mask_type)
