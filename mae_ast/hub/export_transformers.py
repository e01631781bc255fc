"""Export models to folders that transformers loads without this package."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
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
from mae_ast.core.inference.whole_clips import LONGEST_S
from mae_ast.core.io.audio import SAMPLE_RATE
from mae_ast.core.models.ast import Ast
from mae_ast.core.models.config import AstConfig, EncoderConfig
from mae_ast.finetune.checkpoint import FineTuned
from mae_ast.hub.export import replacing, statistics
from mae_ast.hub.load import Pretrained, write_safetensors
from mae_ast.hub.model_card import CardFacts, model_card, usage_in_transformers

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


def to_transformers(
    model: Pretrained | FineTuned, path: Path, overwrite: bool = False, **card: Any
) -> str:
    """Write a folder for transformers: an encoder, or a classifier.

    An AST that transformers' own ``ASTForAudioClassification`` represents is written for that
    class. Any other model is written with modelling code, which ``trust_remote_code=True`` loads.

    Args:
        model: a pretrained model, whose encoder is written; an AST with its head, or a classifier.
        path: folder to write.
        overwrite: as in :func:`mae_ast.hub.export.check_target`.
        card: ``scores`` and ``license`` of :func:`mae_ast.hub.model_card.model_card`.

    Returns:
        The name of the class that loads the folder.

    Raises:
        ValueError: the modelling code does not implement the system's encoder.
        FileExistsError: as :func:`mae_ast.hub.export.check_target`.
    """
    exported = _exported(model)
    with replacing(path, True, overwrite) as part:
        part.mkdir()
        training = {"training": model.training_record} if model.training_record else {}
        _write_json({**exported.fields, **training}, part / CONFIG_FILE)
        _write_json(exported.preprocessor, part / PREPROCESSOR_FILE)
        for name in () if exported.is_native else CODE_FILES:
            shutil.copyfile(CODE / name, part / name)
        write_safetensors(exported.weights, part / WEIGHTS_FILE)
        _model_card(model, exported, card).save(part / "README.md")
    return exported.loader


@dataclass(frozen=True)
class _Exported:
    """Content of a folder.

    Args:
        loader: name of the class that loads it.
        config: configuration of the encoder.
        spec: specification of a classifier; ``None``: an encoder.
        fields, preprocessor, weights: contents of ``config.json``, ``preprocessor_config.json``
            and ``model.safetensors``.
    """

    loader: str
    config: EncoderConfig
    spec: ClassifierSpec | None
    fields: Mapping[str, Any]
    weights: Mapping[str, Tensor]
    preprocessor: Mapping[str, Any] = field(default_factory=lambda: FEATURE_EXTRACTOR)

    @property
    def is_native(self) -> bool:
        """True if a class of transformers loads it."""
        return self.preprocessor is not FEATURE_EXTRACTOR


def _exported(model: Pretrained | FineTuned) -> _Exported:
    if isinstance(model, FineTuned):
        spec: ClassifierSpec | None = model.description
        network: Any = model.model.encoder
        weights: Mapping[str, Tensor] = model.model.state_dict()
    else:
        spec, network, weights = None, model, model.state_dict()
        if isinstance(model, Ast) and not model.encoder_only:
            spec = spec_of_ast(model.config, model.labels, model.independent)
            weights = classifier_weights(weights)
    mean, std = statistics(network)  # fine-tuning may have changed them
    config = dataclasses.replace(network.config, input_mean=mean, input_std=std)
    code = {"auto_map": AUTO_MAP, "dtype": "float32"}
    if spec is None:
        fields = {**hf_encoder.encoder_fields(config), **code}
        own = hf_encoder.encoder_weights(weights)
        return _Exported("AutoModel", config, None, fields, own)
    spec = dataclasses.replace(spec, encoder=config)
    if (native := _native(spec, weights)) is not None:
        return native
    fields = {**hf_encoder.classifier_fields(spec), **code}
    own = hf_encoder.classifier_weights(weights)
    return _Exported("AutoModelForAudioClassification", config, spec, fields, own)


def _native(spec: ClassifierSpec, weights: Mapping[str, Tensor]) -> _Exported | None:
    """Return the files for transformers' AST; ``None``: it cannot represent the classifier.

    That class pads each clip to the length of its positions, and attends to all of them.
    """
    config, head = spec.encoder, spec.head
    if not isinstance(config, AstConfig) or config.input_frames is None:
        return None
    if (head.pool, head.kind) != ("encoder", "linear"):
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
    own = hf_ast.to_hugging_face(config, encoder_weights(weights, with_head=True))
    return _Exported("ASTForAudioClassification", config, spec, fields, own, preprocessor)


def _model_card(
    model: Pretrained | FineTuned, exported: _Exported, card: Mapping[str, Any]
) -> ModelCard:
    spec, config = exported.spec, exported.config
    facts = CardFacts(
        config,
        sum(weight.numel() for weight in exported.weights.values()),
        model.training_record,
        len(spec.labels) if spec else 0,
        spec.labels.names if spec else None,
        spec.independent if spec else True,
        encoder_only=spec is None,
    )
    window_s = max(LONGEST_S, spec.clip_samples / SAMPLE_RATE) if spec else LONGEST_S
    if config.input_frames is not None:
        window_s = min(window_s, config.input_frames / 100)
    return model_card(
        facts,
        usage_in_transformers(facts, window_s, exported.is_native),
        library="transformers",
        tags=() if exported.is_native else ("custom_code",),
        has_code=not exported.is_native,
        **card,
    )


def _write_json(values: Mapping[str, Any], path: Path) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
