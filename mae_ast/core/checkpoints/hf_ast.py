"""Convert weights to and from Hugging Face's ``ASTForAudioClassification``.

For the configuration see :mod:`mae_ast.core.checkpoints.hf_ast_config`. Names are written as they
are on the hub, which every version of transformers reads. transformers 5 uses shorter names in
memory; both forms are read.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mae_ast.core.checkpoints import hf_ast_config
from mae_ast.core.checkpoints.hub_files import (
    CONFIG_FILE,
    PREPROCESSOR_FILE,
    read_config_file,
    read_json,
    recorded_training,
)
from mae_ast.core.checkpoints.key_table import Row, State, Weights, modules, read, write
from mae_ast.core.checkpoints.layout import Checkpoint, Content, Layout
from mae_ast.core.checkpoints.state_files import CheckpointError
from mae_ast.core.checkpoints.timm import embedding_rows, statistics_row
from mae_ast.core.checkpoints.wrappers import MODEL
from mae_ast.core.io.first_line import first_line
from mae_ast.core.models.config import AstConfig

_ROOT = "audio_spectrogram_transformer."
_EMBEDDINGS = f"{_ROOT}embeddings."
_CLS, _DIST = f"{_EMBEDDINGS}cls_token", f"{_EMBEDDINGS}distillation_token"
_POSITIONS = f"{_EMBEDDINGS}position_embeddings"
_PATCHES = f"{_EMBEDDINGS}patch_embeddings.projection"

# Modules of a layer: names on the hub, names in memory in transformers 5 -> ours.
_LAYER = {
    ("attention.attention.query", "attention.q_proj"): "self_attn.q_proj",
    ("attention.attention.key", "attention.k_proj"): "self_attn.k_proj",
    ("attention.attention.value", "attention.v_proj"): "self_attn.v_proj",
    ("attention.output.dense", "attention.o_proj"): "self_attn.out_proj",
    ("intermediate.dense", "mlp.fc1"): "fc1",
    ("output.dense", "mlp.fc2"): "fc2",
    ("layernorm_before", "layernorm_before"): "self_attn_layer_norm",
    ("layernorm_after", "layernorm_after"): "final_layer_norm",
}
_STACKS = (f"{_ROOT}encoder.layer.", f"{_ROOT}layers.")  # in the same order
_MODULES = {
    f"{_ROOT}layernorm": "encoder.layer_norm",
    "classifier.layernorm": "head.layer_norm",
    "classifier.dense": "head.linear",
}

logger = logging.getLogger(__name__)


def to_hugging_face(config: AstConfig, weights: State) -> Weights:
    """Return the weights under the names used on the hub."""
    return write(_rows(config), weights)


def from_hugging_face(config: AstConfig, state: State) -> Weights:
    """Return the weights under our names.

    Raises:
        ValueError: a key is missing, unknown, or of another shape; it is named.
    """
    is_short = any(str(key).startswith(_STACKS[1]) for key in state)
    return read(_rows(config, is_short), config, state)


def read_folder(fields: Any, weights: Mapping[str, Any], path: Path) -> Checkpoint:
    """Read the files of transformers' ``ASTForAudioClassification``.

    Args:
        fields: content of ``config.json``.
        weights: state dict of the weights file.
        path: path of the weights file; ``preprocessor_config.json`` is in the same folder.

    Raises:
        CheckpointError: a file is invalid, or contains an unsupported model; it is named.
    """
    preprocessor = path.with_name(PREPROCESSOR_FILE)
    given = read_json(preprocessor) if preprocessor.is_file() else None
    try:
        config = hf_ast_config.config_from_hugging_face(fields, given)
        labels = hf_ast_config.labels_of(fields)
        independent = hf_ast_config.is_independent(fields)
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path.with_name(CONFIG_FILE)}: {first_line(error)}") from error
    try:
        found = from_hugging_face(config, weights)
    except ValueError as error:
        raise CheckpointError(f"{path}: {first_line(error)}") from error
    if fields.get("problem_type") is None:
        logger.warning(
            "%s: problem_type is not set; scores are a softmax over all classes, as in "
            "transformers' pipeline; set it to multi_label_classification for sigmoids",
            path.with_name(CONFIG_FILE),
        )
    training = recorded_training(fields)
    return Checkpoint(config, None, found, labels, independent=independent, training=training)


def _rows(config: AstConfig, is_short: bool = False) -> list[Row]:
    layers = {
        f"{_STACKS[is_short]}*.{names[is_short]}": f"encoder.layers.*.{ours}"
        for names, ours in _LAYER.items()
    }
    return [
        *embedding_rows(config, (_CLS, _DIST), _POSITIONS, _PATCHES),
        *modules(_MODULES),
        *modules(layers, config.encoder_layers),
        statistics_row(config),
    ]


def _checkpoint(state: Content, path: Path) -> Checkpoint:
    return read_folder(read_config_file(path), state[MODEL], path)


HUGGING_FACE_AST = Layout("ast", keys=(_CLS,), read=_checkpoint)
