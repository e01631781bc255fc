"""The files next to ``model.safetensors``: our ``config.json``, and Hugging Face's own."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mae_ast.core.checkpoints.layout import Checkpoint
from mae_ast.core.checkpoints.state_files import CheckpointError
from mae_ast.core.io.first_line import first_line
from mae_ast.core.models.registry import parse_config, system_name

# Files of a folder in the hub's layout; the last two are for transformers only.
CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
PREPROCESSOR_FILE, TORCH_WEIGHTS_FILE = "preprocessor_config.json", "pytorch_model.bin"
# Modelling code in a folder exported for transformers.
CODE_FILES = (
    "configuration_spectrogram_transformer.py",
    "layers_spectrogram_transformer.py",
    "modeling_spectrogram_transformer.py",
)


def config_dict(
    config: Any,
    mask_type: str | None,
    labels: Sequence[str] | None = None,
    encoder_only: bool = False,
    independent: bool = True,
    training: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the content of ``config.json``."""
    return {
        "system": system_name(config),
        "mask_type": mask_type,
        **({} if labels is None else {"labels": list(labels)}),
        **({"encoder_only": True} if encoder_only else {}),
        **({} if independent else {"independent": False}),
        **({"training": dict(training)} if training else {}),
        **dataclasses.asdict(config),
    }


def parse_config_file(values: Any, path: str | os.PathLike[str]) -> Checkpoint:
    """Parse ``config.json`` into a checkpoint without weights.

    Raises:
        CheckpointError: the model is of another kind, or a field is missing or invalid.
    """
    if not isinstance(values, Mapping) or "system" not in values:
        kind = values.get("model_type") if isinstance(values, Mapping) else None
        other = "" if kind is None else f"; its model_type is {kind!r}"
        raise CheckpointError(f"{path}: does not describe a model of this project{other}")
    try:
        mask_type, labels = values["mask_type"], values.get("labels")
        return Checkpoint(
            parse_config(values),
            None if mask_type is None else str(mask_type),
            {},
            None if labels is None else tuple(str(label) for label in labels),
            bool(values.get("encoder_only", False)),
            bool(values.get("independent", True)),
            recorded_training(values),
        )
    except KeyError as error:
        raise CheckpointError(f"{path}: has no {error}") from error
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: {first_line(error)}") from error


def recorded_training(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what ``config.json`` records about the training."""
    training = values.get("training")
    return training if isinstance(training, Mapping) else {}


def read_config_file(path: Path) -> Any:
    """Read the ``config.json`` in the folder of a weights file.

    Raises:
        FileNotFoundError: there is none.
        CheckpointError: it is not JSON.
    """
    description = path.with_name(CONFIG_FILE)
    if not description.is_file():
        raise FileNotFoundError(
            f"{description}: no such file; it must describe the model in {path.name}"
        )
    return read_json(description)


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        CheckpointError: the file is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid JSON ({first_line(error)})") from error
