"""Export models to folders that transformers loads without this package."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mae_ast.core.checkpoints import hf_ast, hf_ast_config, hf_encoder
from mae_ast.core.checkpoints.classifier import (
    ClassifierSpec,
    classifier_weights,
    encoder_weights,
    spec_of_ast,
)
from mae_ast.core.checkpoints.hub_files import (
    CODE_FILES,
    CONFIG_FILE,
    PREPROCESSOR_FILE,
    WEIGHTS_FILE,
)
from mae_ast.core.checkpoints.reader import holds_classifier
from mae_ast.core.io.audio import SAMPLE_RATE
from mae_ast.core.models.ast import Ast
from mae_ast.core.models.config import AstConfig
from mae_ast.finetune.checkpoint import FineTuned, load_finetuned
from mae_ast.hub.export import replacing, statistics
from mae_ast.hub.load import Pretrained, from_file, locate, write_safetensors

CODE = Path(__file__).parent / "transformers_files"
AUTO_MAP = {
    "AutoConfig": "configuration_spectrogram_transformer.SpectrogramTransformerConfig",
    "AutoModel": f"modeling_spectrogram_transformer.{hf_encoder.ENCODER}",
    "AutoModelForAudioClassification": f"modeling_spectrogram_transformer.{hf_encoder.CLASSIFIER}",
}
# Pads waveforms; the model computes and normalises the filterbank.
FEATURE_EXTRACTOR = {
    "feature_extractor_type": "Wav2Vec2FeatureExtractor",
    "feature_size": 1,
    "sampling_rate": SAMPLE_RATE,
    "padding_side": "right",
    "padding_value": 0.0,
    "do_normalize": False,
    "return_attention_mask": True,
}


def load_with_head(source: str) -> Pretrained | FineTuned:
    """Load a model with its classification head, if it has one.

    Args:
        source: as in :func:`mae_ast.load`.

    Raises:
        ValueError, FileNotFoundError, CheckpointError, DownloadError: as :func:`mae_ast.load`.
    """
    path = locate(source)
    return load_finetuned(path) if holds_classifier(path) else from_file(path)


def to_transformers(model: Pretrained | FineTuned, path: Path, overwrite: bool = False) -> str:
    """Write a folder for transformers: an encoder, or a classifier.

    An AST that transformers' own ``ASTForAudioClassification`` represents is written for that
    class. Any other model is written with modelling code, which ``trust_remote_code=True`` loads.

    Args:
        model: a pretrained model, whose encoder is written; an AST with its head, or a classifier.
        path: folder to write.
        overwrite: as in :func:`mae_ast.hub.export.check_target`.

    Returns:
        The name of the class that loads the folder.

    Raises:
        ValueError: the modelling code does not implement the system's encoder.
        FileExistsError: as :func:`mae_ast.hub.export.check_target`.
    """
    if isinstance(model, FineTuned):
        spec = model.description
        network: Any = model.model.encoder
        weights: Mapping[str, Tensor] = model.model.state_dict()
    else:
        spec, network, weights = None, model, model.state_dict()
        if isinstance(model, Ast) and not model.encoder_only:
            spec = spec_of_ast(model.config, model.labels, model.independent)
            weights = classifier_weights(weights)
    mean, std = statistics(network)  # fine-tuning may have changed them
    config = dataclasses.replace(network.config, input_mean=mean, input_std=std)
    if spec is None:
        fields = hf_encoder.encoder_fields(config)
        _write(path, fields, hf_encoder.encoder_weights(weights), overwrite)
        return "AutoModel"
    spec = dataclasses.replace(spec, encoder=config)
    if native := _native_files(spec, weights):
        _write_native(path, *native, overwrite)
        return "ASTForAudioClassification"
    fields = hf_encoder.classifier_fields(spec)
    _write(path, fields, hf_encoder.classifier_weights(weights), overwrite)
    return "AutoModelForAudioClassification"


def _native_files(
    spec: ClassifierSpec, weights: Mapping[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Tensor]] | None:
    """Return configuration, preprocessor and weights for transformers' AST, if it can have them.

    That class pads each clip to the length of its positions, and attends to all of them.
    """
    config, head = spec.encoder, spec.head
    if not isinstance(config, AstConfig) or (head.pool, head.kind) != ("encoder", "linear"):
        return None
    config = dataclasses.replace(
        config, num_classes=head.num_classes, head_layer_norm_eps=head.layer_norm_eps
    )
    try:
        fields, preprocessor = hf_ast_config.config_to_hugging_face(
            config, spec.labels.names, spec.independent
        )
    except ValueError:
        return None
    if config.input_frames is None:
        return None
    own = encoder_weights(weights, with_head=True)
    return fields, preprocessor, hf_ast.to_hugging_face(config, own)


def _write_native(
    path: Path,
    fields: Mapping[str, Any],
    preprocessor: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    overwrite: bool,
) -> None:
    with replacing(path, True, overwrite) as part:
        part.mkdir()
        write_json(fields, part / CONFIG_FILE)
        write_json(preprocessor, part / PREPROCESSOR_FILE)
        write_safetensors(weights, part / WEIGHTS_FILE)


def _write(
    path: Path, fields: Mapping[str, Any], weights: Mapping[str, Tensor], overwrite: bool
) -> None:
    with replacing(path, True, overwrite) as part:
        part.mkdir()
        write_json({**fields, "auto_map": AUTO_MAP, "dtype": "float32"}, part / CONFIG_FILE)
        write_json(FEATURE_EXTRACTOR, part / PREPROCESSOR_FILE)
        for name in CODE_FILES:
            shutil.copyfile(CODE / name, part / name)
        write_safetensors(weights, part / WEIGHTS_FILE)


def write_json(values: Mapping[str, Any], path: Path) -> None:
    """Write a JSON file."""
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
