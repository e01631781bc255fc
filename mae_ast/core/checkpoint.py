"""Checkpoint files: what is in them, read safely, and put into a model.

Three kinds are read: what the trainer writes, files in the layout of the released ones
(:mod:`mae_ast.core.released`), and safetensors with a ``config.json`` beside them.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from zipfile import is_zipfile

import torch
from torch import Tensor

from mae_ast.core import released
from mae_ast.core.config import MaeAstConfig
from mae_ast.core.mae_ast import MaeAst
from mae_ast.core.weights import misfits

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"  # of a folder in the hub's layout
SYSTEM = "mae_ast"

M = TypeVar("M", bound=MaeAst)


class CheckpointError(ValueError):
    """A file that is no checkpoint of this project; the message names it and says why."""


@dataclass(frozen=True)
class Checkpoint:
    """What a file says of a model.

    Args:
        config: what the model is made of.
        mask_type: the masking it was trained with.
        weights: by :class:`MaeAst`'s names; not looked at yet.
    """

    config: MaeAstConfig
    mask_type: str
    weights: Mapping[str, Any]


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a file, or a folder in the hub's layout; nothing in it is executed.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is damaged, would run something, or is no such checkpoint.
    """
    path = Path(path)
    if path.is_dir():
        path = path / WEIGHTS_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    return _read_torch(path)


def fill(model: M, checkpoint: Checkpoint, path: str | os.PathLike[str]) -> M:
    """Put a checkpoint's weights into a model of its configuration, and that into eval mode.

    Args:
        model: whose weights are replaced, each keeping its type.
        checkpoint: where they come from.
        path: of the file, for messages.

    Raises:
        CheckpointError: as :func:`check_weights`.
    """
    check_weights(model.state_dict(), checkpoint.weights, path)
    model.load_state_dict(dict(checkpoint.weights))
    return model.eval()


def check_weights(
    wanted: Mapping[str, Tensor], found: Mapping[str, Any], path: str | os.PathLike[str]
) -> None:
    """Compare names and shapes of a model's weights with those in a file.

    Raises:
        CheckpointError: one is missing, unknown, no tensor, or of another shape; it is named.
    """
    problems = misfits(wanted, found)
    if problems:
        raise CheckpointError(f"{path}: the weights do not fit its model; {problems}")


def config_dict(config: MaeAstConfig, mask_type: str) -> dict[str, Any]:
    """The content of ``config.json``."""
    return {"system": SYSTEM, "mask_type": mask_type, **dataclasses.asdict(config)}


def parse_config(
    values: Mapping[str, Any], path: str | os.PathLike[str]
) -> tuple[MaeAstConfig, str]:
    """Configuration and masking out of ``config.json``.

    Raises:
        CheckpointError: it is of another kind of model, or lacks something.
    """
    if not isinstance(values, Mapping) or values.get("system") != SYSTEM:
        kind = values.get("system") if isinstance(values, Mapping) else None
        raise CheckpointError(f"{path}: describes a model of kind {kind!r}, not {SYSTEM!r}")
    try:
        config = MaeAstConfig.from_mapping(values)
        config.validate()
        return config, str(values["mask_type"])
    except (KeyError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: {_one_line(error)}") from error


def read_state(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The dictionary in a file of ``torch.save``; tensors are read when they are looked at.

    Raises:
        CheckpointError: it is damaged, would run something, or holds something else.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path))
    except Exception as error:
        raise CheckpointError(
            f"{path}: is no checkpoint that can be read safely ({_one_line(error)})"
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: holds a {type(state).__name__}, not a checkpoint")
    return state


def _read_torch(path: Path) -> Checkpoint:
    state = read_state(path)
    try:
        model_cfg, mask_type = state["cfg"]["model"], state["cfg"]["task"]["mask_type"]
        weights = dict(state["model"])
        released.check(model_cfg, state["cfg"]["task"])
        config = MaeAstConfig.from_mapping(model_cfg)
        config.validate()
        return Checkpoint(config, str(mask_type), released.without_extras(weights))
    except KeyError as error:
        raise CheckpointError(f"{path}: has no {error}; a pretraining checkpoint does") from error
    except (TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(f"{path}: {_one_line(error)}") from error


def _read_safetensors(path: Path) -> Checkpoint:
    from safetensors.torch import load_file

    description = path.with_name(CONFIG_FILE)
    if not description.is_file():
        raise FileNotFoundError(f"{description}: no such file; it describes {path.name}")
    try:
        values = json.loads(description.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{description}: is no JSON ({_one_line(error)})") from error
    config, mask_type = parse_config(values, description)
    try:
        weights = load_file(path)
    except Exception as error:
        raise CheckpointError(
            f"{path}: is no safetensors file that can be read ({_one_line(error)})"
        ) from error
    return Checkpoint(config, mask_type, weights)


def _one_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
