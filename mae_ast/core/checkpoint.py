"""Checkpoint files: what is in them, read safely, and put into a model.

Read are: what the trainer writes in pretraining, and of what it writes in fine-tuning the encoder
(of AST all); files in the layouts of the released ones (:mod:`mae_ast.core.released`,
:mod:`mae_ast.core.released_ast`, :mod:`mae_ast.core.released_audio_mae`), safetensors with our
``config.json`` beside them, and those of Hugging Face's AST (:mod:`mae_ast.core.hugging_face_ast`).
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from zipfile import is_zipfile

import torch
from torch import Tensor, nn

from mae_ast.core import hugging_face_ast, released, released_ast, released_audio_mae
from mae_ast.core.patches import PatchShape
from mae_ast.core.systems import config_from, name_of
from mae_ast.core.weights import misfits

# Of a folder in the hub's layout; the last is there for Hugging Face's own models only.
CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
PREPROCESSOR_FILE = "preprocessor_config.json"
RUN_FILE = Path("checkpoints", "checkpoint_last.pt")  # of the folder of a run
FINETUNING = "mae_ast_classification"  # where fine-tuned files describe their network

# The head of a classifier that pools as AST does, and what those layers are called in AST itself.
_AST_HEAD = {"head.0.": "head.layer_norm.", "head.2.": "head.linear."}

logger = logging.getLogger(__name__)

M = TypeVar("M", bound=nn.Module)


class CheckpointError(ValueError):
    """A file that is no checkpoint of this project; the message names it and says why."""


@dataclass(frozen=True)
class Checkpoint:
    """What a file says of a model.

    Args:
        config: what the model is made of, of one of the ``SYSTEMS``.
        mask_type: the masking it was trained with; ``None``: with none, as AST.
        weights: by its system's names; not looked at yet.
        labels: what the outputs of a classifier are called, where the file tells.
        encoder_only: its weights are the encoder's, without what serves pretraining alone.
        independent: a classifier's scores are sigmoids, each class by itself, as published AST's;
            else a softmax over all.
    """

    config: Any
    mask_type: str | None
    weights: Mapping[str, Any]
    labels: tuple[str, ...] | None = None
    encoder_only: bool = False
    independent: bool = True


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a file, or a folder in the hub's layout or of a run; nothing in it is executed.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is damaged, would run something, or is no such checkpoint.
    """
    path = file_of(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    return _read_torch(path)


def file_of(path: str | os.PathLike[str]) -> Path:
    """Return the file itself, or the one that a folder in the hub's layout or of a run holds.

    Of a run that is its last checkpoint, or the newest whole one where that is missing or damaged.

    Raises:
        FileNotFoundError: there is none.
        CheckpointError: all checkpoints of a run are damaged.
    """
    from mae_ast.core.run_files import latest  # which reads checkpoints

    path = Path(path)
    if path.is_dir():
        found = latest(path / RUN_FILE.parent)
        if found is None and (path / WEIGHTS_FILE).is_file():
            found = path / WEIGHTS_FILE
        if found is None:
            raise FileNotFoundError(f"{path}: holds neither {RUN_FILE} nor {WEIGHTS_FILE}")
        return found
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    return path


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


def config_dict(
    config: Any,
    mask_type: str | None,
    labels: Sequence[str] | None = None,
    encoder_only: bool = False,
    independent: bool = True,
) -> dict[str, Any]:
    """The content of ``config.json``."""
    return {
        "system": name_of(config),
        "mask_type": mask_type,
        **({} if labels is None else {"labels": list(labels)}),
        **({"encoder_only": True} if encoder_only else {}),
        **({} if independent else {"independent": False}),
        **dataclasses.asdict(config),
    }


def parse_config(values: Any, path: str | os.PathLike[str]) -> Checkpoint:
    """What ``config.json`` tells of a checkpoint: all but its weights.

    Raises:
        CheckpointError: it is of another kind of model, or lacks something.
    """
    if not isinstance(values, Mapping) or "system" not in values:
        raise CheckpointError(f"{path}: describes no model of this project")
    try:
        mask_type, labels = values["mask_type"], values.get("labels")
        return Checkpoint(
            config_from(values),
            None if mask_type is None else str(mask_type),
            {},
            None if labels is None else tuple(str(label) for label in labels),
            bool(values.get("encoder_only", False)),
            bool(values.get("independent", True)),
        )
    except KeyError as error:
        raise CheckpointError(f"{path}: has no {error}") from error
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: {_one_line(error)}") from error


def read_state(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The dictionary in a file of ``torch.save``; tensors are read when they are looked at.

    Raises:
        CheckpointError: it is damaged, would run something, or holds something else.
    """
    try:
        # MAE's program and Audio-MAE's keep their options beside the weights: names and values.
        with torch.serialization.safe_globals([Namespace]):
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path))
    except Exception as error:
        raise CheckpointError(
            f"{path}: is no checkpoint that can be read safely ({_one_line(error)})"
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: holds a {type(state).__name__}, not a checkpoint")
    return state


def is_finetuned(state: Mapping[str, Any]) -> bool:
    """Whether a file's content was written by fine-tuning."""
    kept = state.get("task_state")
    return isinstance(kept, Mapping) and FINETUNING in kept


def _read_torch(path: Path) -> Checkpoint:
    state = read_state(path)
    try:
        if is_finetuned(state):
            return _of_finetuned(state)
        if released_ast.is_ssast(state):
            ssast, weights = released_ast.read_ssast(state)
            return Checkpoint(ssast, _published_mask(ssast.patch_shape), weights)
        if released_ast.is_ast(state):
            ast, weights = released_ast.read_ast(state)
            return Checkpoint(ast, None, weights)
        if released_audio_mae.is_audio_mae(state):
            audio_mae, weights, left_out = released_audio_mae.read_audio_mae(state)
            if left_out:
                logger.warning("%s: %s", path, released_audio_mae.in_words(left_out))
            return Checkpoint(audio_mae, "random_mask", weights)
        model_cfg, task_cfg = state["cfg"]["model"], state["cfg"]["task"]
        mask_type, weights = task_cfg["mask_type"], dict(state["model"])
        released.check(model_cfg, task_cfg)
        return Checkpoint(config_from(model_cfg), str(mask_type), released.without_extras(weights))
    except KeyError as error:
        raise CheckpointError(f"{path}: has no {error}; a pretraining checkpoint does") from error
    except (TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(f"{path}: {_one_line(error)}") from error


def _of_finetuned(state: Mapping[str, Any]) -> Checkpoint:
    """The encoder of a classifier; of AST with the head that belongs to it, all of it."""
    network, head = state["task_state"][FINETUNING], state["task_state"][FINETUNING]["head"]
    is_ast = (network["system"], head["pool"], head["kind"]) == ("ast", "encoder", "linear")
    given = {"num_classes": head["num_classes"]} if is_ast else {}
    config = config_from({**network["encoder"], **given, "system": network["system"]})
    names = {"encoder.": "", **(_AST_HEAD if is_ast else {})}
    weights = {
        ours + name.removeprefix(theirs): value
        for name, value in state["model"].items()
        for theirs, ours in names.items()
        if name.startswith(theirs)
    }
    labels = tuple(str(name) for name in network["names"]) if is_ast else None
    independent = bool(network["independent"])
    return Checkpoint(config, None, weights, labels, not is_ast, independent)


def _published_mask(shape: PatchShape) -> str:
    """How SSAST was pretrained: clusters of patches, or single frames."""
    return "random_mask" if shape.per_column == 1 else "chunk_mask"


def _read_safetensors(path: Path) -> Checkpoint:
    description = path.with_name(CONFIG_FILE)
    if not description.is_file():
        raise FileNotFoundError(f"{description}: no such file; it describes {path.name}")
    values = _read_json(description)
    if isinstance(values, Mapping) and values.get("model_type") == hugging_face_ast.MODEL_TYPE:
        return _of_hugging_face(values, _read_weights(path), path)
    found = parse_config(values, description)
    return dataclasses.replace(found, weights=_read_weights(path))


def _read_weights(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:
        raise CheckpointError(
            f"{path}: is no safetensors file that can be read ({_one_line(error)})"
        ) from error


def _of_hugging_face(
    fields: Mapping[str, Any], weights: Mapping[str, Any], path: Path
) -> Checkpoint:
    """A folder of transformers' ``ASTForAudioClassification``."""
    beside = path.with_name(PREPROCESSOR_FILE)
    try:
        config = hugging_face_ast.config_from_hugging_face(
            fields, _read_json(beside) if beside.is_file() else None
        )
        labels = hugging_face_ast.labels_of(fields)
    except CheckpointError:
        raise
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path.with_name(CONFIG_FILE)}: {_one_line(error)}") from error
    try:
        found = hugging_face_ast.from_hugging_face(config, weights)
    except ValueError as error:
        raise CheckpointError(f"{path}: {_one_line(error)}") from error
    return Checkpoint(config, None, found, labels)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: is no JSON ({_one_line(error)})") from error


def _one_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
