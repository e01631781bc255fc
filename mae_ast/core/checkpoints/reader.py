"""Read checkpoints of any supported layout, and load them into models.

Supported: pretraining checkpoints; fine-tuning checkpoints (the encoder; for AST the full model);
the layouts of the released files (:mod:`mae_ast.core.checkpoints.mae_ast_release`,
:mod:`mae_ast.core.checkpoints.ast_release`, :mod:`mae_ast.core.checkpoints.audio_mae_release`),
also inside the wrappers of other training code (:mod:`mae_ast.core.checkpoints.wrappers`);
safetensors with our ``config.json`` in the same folder; Hugging Face's AST
(:mod:`mae_ast.core.checkpoints.hf_ast`).
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from mae_ast.core.checkpoints import (
    ast_release,
    audio_mae_release,
    hf_ast,
    hf_ast_config,
    mae_ast_release,
)
from mae_ast.core.checkpoints.classifier import FINETUNING, ClassifierSpec, encoder_weights
from mae_ast.core.checkpoints.run_files import latest
from mae_ast.core.checkpoints.state_dict import MAX_NAMED, first_not_finite, mismatches
from mae_ast.core.checkpoints.state_files import CheckpointError as CheckpointError
from mae_ast.core.checkpoints.state_files import read_safetensors
from mae_ast.core.checkpoints.state_files import read_state as read_state
from mae_ast.core.checkpoints.wrappers import MODEL
from mae_ast.core.frontend.patches import PatchShape
from mae_ast.core.io.file_kinds import is_safetensors
from mae_ast.core.io.first_line import first_line
from mae_ast.core.io.near_files import suggestion
from mae_ast.core.models.config import AstConfig
from mae_ast.core.models.registry import parse_config, system_name

# Files of a folder in the hub's layout; the last two are for Hugging Face's own models only.
CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
PREPROCESSOR_FILE, TORCH_WEIGHTS_FILE = "preprocessor_config.json", "pytorch_model.bin"
RUN_FILE = Path("checkpoints", "checkpoint_last.pt")  # relative to the folder of a run

logger = logging.getLogger(__name__)

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Checkpoint:
    """A model as read from a file: configuration and weights.

    Args:
        config: configuration of one of the ``SYSTEMS``.
        mask_type: type of mask in pretraining; ``None`` for models trained without, such as AST.
        weights: state dict with the names of the system; not checked yet.
        labels: class names, if the file contains them.
        encoder_only: ``weights`` are the encoder's only, without pretraining modules.
        independent: a classifier's scores are sigmoids (multi-label), as in the published AST; else
            a softmax over all classes.
    """

    config: Any
    mask_type: str | None
    weights: Mapping[str, Any]
    labels: tuple[str, ...] | None = None
    encoder_only: bool = False
    independent: bool = True


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a file, a folder in the hub's layout, or the folder of a run, without executing code.

    The format is recognised by content, not by name.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is damaged, holds objects that could run code, or is not a
            checkpoint.
    """
    path = file_of(path)
    if is_safetensors(path):
        return _read_safetensors(path)
    return _read_torch(path)


def file_of(path: str | os.PathLike[str]) -> Path:
    """Return the path of a checkpoint file, given the file or its folder (hub layout or run).

    For a run, that is its last checkpoint, or the newest intact one if that is missing or damaged.

    Raises:
        FileNotFoundError: there is no checkpoint.
        CheckpointError: all checkpoints of a run are damaged.
    """
    path = Path(path)
    if path.is_dir():
        found = latest(path / RUN_FILE.parent) or latest(path)
        of_hub = (path / name for name in (WEIGHTS_FILE, TORCH_WEIGHTS_FILE))
        found = found or next((file for file in of_hub if file.is_file()), None)
        if found is None:
            raise FileNotFoundError(
                f"{path}: contains neither {RUN_FILE} nor {WEIGHTS_FILE}, but {_listed(path)}"
            )
        return found
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint{suggestion(path)}")
    return path


def load_weights(model: M, checkpoint: Checkpoint, path: str | os.PathLike[str]) -> M:
    """Load the weights of a checkpoint into a model, and switch it to eval mode.

    Args:
        model: built from the checkpoint's configuration; its weights keep their dtypes.
        checkpoint: source of the weights.
        path: the file's path, for error messages.

    Raises:
        CheckpointError: as :func:`check_weights`.
    """
    check_weights(model.state_dict(), checkpoint.weights, path)
    model.load_state_dict(dict(checkpoint.weights))
    return model.eval()


def check_weights(
    wanted: Mapping[str, Tensor], found: Mapping[str, Any], path: str | os.PathLike[str]
) -> None:
    """Compare a file's weights with those of a model, and refuse values that are not finite.

    Raises:
        CheckpointError: a weight is missing, unknown, not a tensor, of another shape, or holds NaN
            or infinity; it is named.
    """
    problems = mismatches(wanted, found)
    if problems:
        raise CheckpointError(f"{path}: the weights do not match the model; {problems}")
    if name := first_not_finite(found):
        raise CheckpointError(f"{path}: {name} holds NaN or infinity; its training has diverged")


def config_dict(
    config: Any,
    mask_type: str | None,
    labels: Sequence[str] | None = None,
    encoder_only: bool = False,
    independent: bool = True,
) -> dict[str, Any]:
    """Return the content of ``config.json``."""
    return {
        "system": system_name(config),
        "mask_type": mask_type,
        **({} if labels is None else {"labels": list(labels)}),
        **({"encoder_only": True} if encoder_only else {}),
        **({} if independent else {"independent": False}),
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
        )
    except KeyError as error:
        raise CheckpointError(f"{path}: has no {error}") from error
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: {first_line(error)}") from error


def is_hugging_face(path: str | os.PathLike[str]) -> bool:
    """Return whether a ``config.json`` describes a Hugging Face model instead of one of ours.

    Raises:
        CheckpointError: the file is not JSON.
    """
    return hf_ast_config.is_known(_read_json(Path(path)))


def is_finetuned(state: Mapping[str, Any]) -> bool:
    """Return whether the content of a file was written by fine-tuning."""
    task_state = state.get("task_state")
    return isinstance(task_state, Mapping) and FINETUNING in task_state


def _read_torch(path: Path) -> Checkpoint:
    state = read_state(path)
    try:
        if is_finetuned(state):
            return _from_finetuned(state)
        if ast_release.is_ssast(state):
            ssast, weights = ast_release.read_ssast(state)
            return Checkpoint(ssast, _published_mask(ssast.patch_shape), weights)
        if ast_release.is_ast(state):
            if ambiguity := ast_release.ambiguity(state):
                logger.warning("%s: %s", path, ambiguity)
            ast, weights = ast_release.read_ast(state)
            return Checkpoint(ast, None, weights)
        if audio_mae_release.is_audio_mae(state):
            audio_mae, weights, skipped = audio_mae_release.read_audio_mae(state)
            if skipped:
                logger.warning("%s: %s", path, audio_mae_release.describe_skipped(skipped))
            return Checkpoint(audio_mae, "random_mask", weights)
        if hf_ast.is_hugging_face(state):
            return _from_hugging_face(_read_description(path), state[MODEL], path)
        model_cfg, task_cfg = state["cfg"]["model"], state["cfg"]["task"]
        mask_type, weights = task_cfg["mask_type"], dict(state[MODEL])
        mae_ast_release.check(model_cfg, task_cfg)
        return Checkpoint(
            parse_config(model_cfg), str(mask_type), mae_ast_release.without_extras(weights)
        )
    except KeyError as error:
        raise CheckpointError(f"{path}: has no {error}; {_contents(state)}") from error
    except (TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(f"{path}: {first_line(error)}") from error


def _contents(state: Mapping[str, Any]) -> str:
    """Describe the content of a file that matches no supported layout."""
    weights = state.get(MODEL)
    if not isinstance(weights, Mapping) or not weights:
        return "it holds no weights"
    names = ", ".join(str(name) for name in list(weights)[:MAX_NAMED])
    return f"its {len(weights)} weights ({names}, ...) match no supported layout"


def _from_finetuned(state: Mapping[str, Any]) -> Checkpoint:
    """Return the encoder of a classifier; for AST with its own head, the full model."""
    spec = ClassifierSpec.from_state(state)
    config, head = spec.encoder, spec.head
    is_ast = False
    if isinstance(config, AstConfig) and (head.pool, head.kind) == ("encoder", "linear"):
        is_ast = True
        config = dataclasses.replace(
            config, num_classes=head.num_classes, head_layer_norm_eps=head.layer_norm_eps
        )
    weights = encoder_weights(state[MODEL], with_head=is_ast)
    labels = spec.labels.names if is_ast else None
    return Checkpoint(config, None, weights, labels, not is_ast, spec.independent)


def _published_mask(shape: PatchShape) -> str:
    """Return the mask type of published SSAST: chunks of patches, or random frames."""
    return "random_mask" if shape.per_column == 1 else "chunk_mask"


def _read_safetensors(path: Path) -> Checkpoint:
    values = _read_description(path)
    if hf_ast_config.is_known(values):
        return _from_hugging_face(values, read_safetensors(path), path)
    found = parse_config_file(values, path.with_name(CONFIG_FILE))
    return dataclasses.replace(found, weights=read_safetensors(path))


def _read_description(path: Path) -> Any:
    """Read the ``config.json`` in the folder of a weights file."""
    description = path.with_name(CONFIG_FILE)
    if not description.is_file():
        raise FileNotFoundError(
            f"{description}: no such file; it must describe the model in {path.name}"
        )
    return _read_json(description)


def _listed(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return f"{', '.join(names[:MAX_NAMED])}{more}" if names else "nothing"


def _from_hugging_face(
    fields: Mapping[str, Any], weights: Mapping[str, Any], path: Path
) -> Checkpoint:
    """Read the files of transformers' ``ASTForAudioClassification``."""
    preprocessor = path.with_name(PREPROCESSOR_FILE)
    try:
        config = hf_ast_config.config_from_hugging_face(
            fields, _read_json(preprocessor) if preprocessor.is_file() else None
        )
        labels = hf_ast_config.labels_of(fields)
        independent = hf_ast_config.is_independent(fields)
    except CheckpointError:
        raise
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path.with_name(CONFIG_FILE)}: {first_line(error)}") from error
    try:
        found = hf_ast.from_hugging_face(config, weights)
    except ValueError as error:
        raise CheckpointError(f"{path}: {first_line(error)}") from error
    if fields.get("problem_type") is None:
        logger.warning(
            "%s: problem_type is not set; scores are a softmax over all classes, as in "
            "transformers' pipeline; set it to multi_label_classification for sigmoids",
            path.with_name(CONFIG_FILE),
        )
    return Checkpoint(config, None, found, labels, independent=independent)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid JSON ({first_line(error)})") from error
