"""Read checkpoints of any supported layout, and load them into models.

Supported: pretraining checkpoints; fine-tuning checkpoints (the encoder; for AST the full model);
the layouts of the released files (:mod:`mae_ast.core.checkpoints.mae_ast_release`,
:mod:`mae_ast.core.checkpoints.ast_release`, :mod:`mae_ast.core.checkpoints.audio_mae_release`),
also inside the wrappers of other training code (:mod:`mae_ast.core.checkpoints.wrappers`);
safetensors with our ``config.json`` in the same folder; Hugging Face's AST
(:mod:`mae_ast.core.checkpoints.hf_ast`); folders with modelling code for transformers
(:mod:`mae_ast.core.checkpoints.hf_encoder`).
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mae_ast.core.checkpoints import hf_ast, hf_ast_config, hf_encoder
from mae_ast.core.checkpoints.ast_release import AST, SSAST
from mae_ast.core.checkpoints.audio_mae_release import AUDIO_MAE
from mae_ast.core.checkpoints.classifier import FINETUNING, ClassifierSpec, encoder_weights
from mae_ast.core.checkpoints.hub_files import CONFIG_FILE as CONFIG_FILE
from mae_ast.core.checkpoints.hub_files import (
    TORCH_WEIGHTS_FILE,
    WEIGHTS_FILE,
    parse_config_file,
    read_config_file,
    recorded_training,
)
from mae_ast.core.checkpoints.layout import Checkpoint as Checkpoint
from mae_ast.core.checkpoints.layout import Layout
from mae_ast.core.checkpoints.mae_ast_release import MAE_AST
from mae_ast.core.checkpoints.run_files import latest
from mae_ast.core.checkpoints.state_dict import MAX_NAMED, first_not_finite, listing, mismatches
from mae_ast.core.checkpoints.state_files import CheckpointError as CheckpointError
from mae_ast.core.checkpoints.state_files import read_safetensors
from mae_ast.core.checkpoints.state_files import read_state as read_state
from mae_ast.core.checkpoints.training_record import training_record
from mae_ast.core.checkpoints.wrappers import MODEL
from mae_ast.core.io.file_kinds import is_safetensors
from mae_ast.core.io.first_line import first_line
from mae_ast.core.io.near_files import suggestion
from mae_ast.core.models.config import AstConfig

# Layouts of torch.save files, in the order in which they are tried. The last one is also that of
# the trainer's own checkpoints, of any system.
LAYOUTS: list[Layout] = [SSAST, AST, AUDIO_MAE, hf_ast.HUGGING_FACE_AST, MAE_AST]

RUN_FILE = Path("checkpoints", "checkpoint_last.pt")  # relative to the folder of a run

M = TypeVar("M", bound=nn.Module)


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


def read_exported_classifier(
    path: str | os.PathLike[str],
) -> tuple[ClassifierSpec, dict[str, Any], Mapping[str, Any]] | None:
    """Read a classifier that was exported for transformers with our modelling code.

    Returns:
        Its specification, weights and ``Checkpoint.training``; ``None``: the file or folder
        contains something else.

    Raises:
        FileNotFoundError, CheckpointError: as :func:`read_checkpoint`.
    """
    path = file_of(path)
    if not _is_exported_classifier(path):
        return None
    fields = read_config_file(path)
    spec, weights = hf_encoder.read_classifier(fields, read_safetensors(path), path)
    return spec, weights, recorded_training(fields)


def holds_classifier(path: str | os.PathLike[str]) -> bool:
    """Return whether a file or folder holds a classifier, of which ``load`` reads the encoder.

    Raises:
        FileNotFoundError, CheckpointError: as :func:`read_checkpoint`.
    """
    path = file_of(path)
    if is_safetensors(path):
        return _is_exported_classifier(path)
    return is_finetuned(read_state(path))


def _is_exported_classifier(path: Path) -> bool:
    if not is_safetensors(path):
        return False
    fields = read_config_file(path)
    return hf_encoder.is_known(fields) and hf_encoder.is_classifier(fields)


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
            names = sorted(file.name for file in path.iterdir())
            raise FileNotFoundError(
                f"{path}: contains neither {RUN_FILE} nor {WEIGHTS_FILE}, but "
                f"{listing(names) or 'nothing'}"
            )
        return found
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint{suggestion(path)}")
    return path


def build_with_weights(
    build: Callable[[], M], weights: Mapping[str, Any], path: str | os.PathLike[str]
) -> M:
    """Build a model with given weights, in eval mode, without initialising random ones first.

    torch's random number generators are not used. The weights are copied, since they may be a
    memory map of a file that is overwritten later.

    Args:
        build: returns the model. It is called on the meta device; buffers that are not in the state
            dict are computed by the method ``reset_buffers`` of their module, if it has one.
        weights: the model's state dict; the model's own dtypes are kept.
        path: the file's path, for error messages.

    Raises:
        CheckpointError: as :func:`check_weights`.
    """
    with torch.device("meta"):
        model = build()
    wanted = model.state_dict()
    check_weights(wanted, weights, path)
    contiguous = torch.contiguous_format
    copies = {
        name: weights[name].detach().to(value.dtype, copy=True, memory_format=contiguous)
        for name, value in wanted.items()
    }
    model.load_state_dict(copies, assign=True)
    for module in model.modules():
        if callable(reset := getattr(module, "reset_buffers", None)):
            reset()
    if any(buffer.is_meta for buffer in model.buffers()):
        with torch.random.fork_rng(devices=[]):
            model = build()
        model.load_state_dict(copies)
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


def is_finetuned(state: Mapping[str, Any]) -> bool:
    """Return whether the content of a file was written by fine-tuning."""
    task_state = state.get("task_state")
    return isinstance(task_state, Mapping) and FINETUNING in task_state


def _read_torch(path: Path) -> Checkpoint:
    state = read_state(path)
    try:
        if is_finetuned(state):
            return _from_finetuned(state)
        layout = next(each for each in LAYOUTS if each.matches(state))
        found = layout.read(state, path)
        if found.training:
            return found
        return dataclasses.replace(found, training=training_record(state, "pretraining"))
    except CheckpointError:
        raise
    except KeyError as error:
        raise CheckpointError(f"{path}: has no {error}; {_contents(state)}") from error
    except (TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(f"{path}: {first_line(error)}") from error


def _read_safetensors(path: Path) -> Checkpoint:
    fields = read_config_file(path)
    if hf_ast_config.is_known(fields):
        return hf_ast.read_folder(fields, read_safetensors(path), path)
    if hf_encoder.is_known(fields):
        return hf_encoder.read_folder(fields, read_safetensors(path), path)
    found = parse_config_file(fields, path.with_name(CONFIG_FILE))
    return dataclasses.replace(found, weights=read_safetensors(path))


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
    training = training_record(state, "fine-tuning")
    return Checkpoint(config, None, weights, labels, not is_ast, spec.independent, training)
