"""Convert weights to and from Hugging Face's ``ASTForAudioClassification``.

For the configuration see :mod:`mae_ast.core.checkpoints.hf_ast_config`. Names are written as they
are on the hub, which every version of transformers reads. transformers 5 uses shorter names in
memory; both forms are read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from mae_ast.core.checkpoints.timm import (
    State,
    Weights,
    check,
    kernel_of,
    meta_weights,
    rows_of,
    statistics,
    swap_axes,
)
from mae_ast.core.checkpoints.wrappers import MODEL
from mae_ast.core.models.ast import Ast
from mae_ast.core.models.config import AstConfig

_ROOT = "audio_spectrogram_transformer."
_EMBEDDINGS = f"{_ROOT}embeddings."
_CLS, _DIST = f"{_EMBEDDINGS}cls_token", f"{_EMBEDDINGS}distillation_token"
_POSITIONS = f"{_EMBEDDINGS}position_embeddings"
_PATCHES = f"{_EMBEDDINGS}patch_embeddings.projection"

# Modules of a layer: names on the hub -> ours.
_LAYER = {
    "attention.attention.query": "self_attn.q_proj",
    "attention.attention.key": "self_attn.k_proj",
    "attention.attention.value": "self_attn.v_proj",
    "attention.output.dense": "self_attn.out_proj",
    "intermediate.dense": "fc1",
    "output.dense": "fc2",
    "layernorm_before": "self_attn_layer_norm",
    "layernorm_after": "final_layer_norm",
}
_MODULES = {
    f"{_ROOT}layernorm": "encoder.layer_norm",
    "classifier.layernorm": "head.layer_norm",
    "classifier.dense": "head.linear",
}
# Names of these modules in memory in transformers 5, where they differ -> names on the hub.
_SHORT = {
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
_SHORT_KEY = re.compile(re.escape(_ROOT) + r"layers\.(\d+)\.(.+)\.(weight|bias)")


def is_hugging_face(state: State) -> bool:
    """Return whether the unwrapped content of a file holds a Hugging Face AST."""
    weights = state.get(MODEL)
    return isinstance(weights, Mapping) and _CLS in weights


def to_hugging_face(config: AstConfig, weights: State) -> Weights:
    """Return the weights under the names used on the hub."""
    shape, table = config.patch_shape, weights["positions.table"]
    positions = swap_axes(table[:, 2:], config.position_grid)
    state = {
        _CLS: weights["prefix_tokens"][:, :1],
        _DIST: weights["prefix_tokens"][:, 1:],
        _POSITIONS: torch.cat((table[:, :2], positions), dim=1),
        f"{_PATCHES}.weight": kernel_of(weights["post_extract_proj.weight"], shape.time, shape.mel),
        f"{_PATCHES}.bias": weights["post_extract_proj.bias"],
    }
    names = _names(config.encoder_layers)
    return {**state, **{theirs: weights[ours] for theirs, ours in names.items()}}


def from_hugging_face(config: AstConfig, state: State) -> Weights:
    """Return the weights under our names.

    Raises:
        ValueError: a key is missing, unknown, or of another shape; it is named.
    """
    found = {_hub_name(str(key)): value for key, value in state.items()}
    check(to_hugging_face(config, meta_weights(Ast, config)), found)
    along_time, along_mel = config.position_grid
    table = found[_POSITIONS]
    positions = swap_axes(table[:, 2:], (along_mel, along_time))
    names = _names(config.encoder_layers)
    return {
        **statistics(config),
        "prefix_tokens": torch.cat((found[_CLS], found[_DIST]), dim=1),
        "positions.table": torch.cat((table[:, :2], positions), dim=1),
        "post_extract_proj.weight": rows_of(found[f"{_PATCHES}.weight"]),
        "post_extract_proj.bias": found[f"{_PATCHES}.bias"],
        **{ours: found[theirs] for theirs, ours in names.items()},
    }


def _names(num_layers: int) -> dict[str, str]:
    """Map names on the hub to ours, for weights that are copied unchanged."""
    modules = dict(_MODULES)
    for layer in range(num_layers):
        for theirs, ours in _LAYER.items():
            modules[f"{_ROOT}encoder.layer.{layer}.{theirs}"] = f"encoder.layers.{layer}.{ours}"
    return {
        f"{theirs}.{kind}": f"{ours}.{kind}"
        for theirs, ours in modules.items()
        for kind in ("weight", "bias")
    }


def _hub_name(key: str) -> str:
    match = _SHORT_KEY.fullmatch(key)
    if match is None:
        return key
    layer, module, kind = match.groups()
    return f"{_ROOT}encoder.layer.{layer}.{_SHORT.get(module, module)}.{kind}"
