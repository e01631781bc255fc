"""Convert encoders and classifiers to and from folders with modelling code for transformers.

The code, in ``mae_ast.hub.transformers_files``, uses our names of fields and weights, except that a
classifier's encoder is ``model``. The statistics of the input are fields of ``config.json``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mae_ast.core.checkpoints.classifier import ClassifierSpec
from mae_ast.core.checkpoints.hf_ast_config import is_independent, labels_of, problem_type
from mae_ast.core.checkpoints.hub_files import CONFIG_FILE, recorded_training
from mae_ast.core.checkpoints.layout import Checkpoint
from mae_ast.core.checkpoints.state_files import CheckpointError
from mae_ast.core.frontend.input_norm import InputNorm
from mae_ast.core.io.first_line import first_line
from mae_ast.core.io.labels import Labels
from mae_ast.core.models.classifier import HeadConfig
from mae_ast.core.models.config import EncoderConfig
from mae_ast.core.models.encoder import PARTS, Encoder
from mae_ast.core.models.registry import SYSTEMS, parse_config, system_name

MODEL_TYPE = "spectrogram_transformer"
ENCODER, CLASSIFIER = (  # classes of the modelling code
    "SpectrogramTransformerModel",
    "SpectrogramTransformerForAudioClassification",
)
# Fields of an encoder; some are constants of its system.
_ENCODER_KEYS = (
    *("ast_kernel_size_time", "ast_kernel_size_chan"),
    *("ast_kernel_stride_time", "ast_kernel_stride_chan"),
    *("encoder_layers", "encoder_embed_dim", "encoder_ffn_embed_dim", "encoder_attention_heads"),
    *("layer_norm_first", "layer_norm_eps", "prefix_tokens", "positions", "position_frames"),
    *("window_type", "input_frames", "pool"),
    *("dropout", "attention_dropout", "activation_dropout", "input_mean", "input_std"),
)
_HEAD_KEYS = ("kind", "pool", "dropout", "layer_norm_eps")  # with the prefix head_ in the file
_STATISTICS = "batch_norm."


def is_known(fields: Any) -> bool:
    """Return whether the content of a ``config.json`` describes such a model."""
    return isinstance(fields, Mapping) and fields.get("model_type") == MODEL_TYPE


def is_classifier(fields: Mapping[str, Any]) -> bool:
    """Return whether the content of a ``config.json`` describes a classifier."""
    return CLASSIFIER in (fields.get("architectures") or ())


def encoder_fields(config: EncoderConfig) -> dict[str, Any]:
    """Return the fields of an encoder in ``config.json``.

    Raises:
        ValueError: the modelling code does not implement the system's encoder.
    """
    name = system_name(config)
    if SYSTEMS[name].encoder is not Encoder:
        raise ValueError(
            f"a model of kind {name!r} has an encoder of its own, which the modelling code for "
            "transformers does not implement"
        )
    fields = {key: getattr(config, key) for key in _ENCODER_KEYS}
    return {"architectures": [ENCODER], "model_type": MODEL_TYPE, "system": name, **fields}


def classifier_fields(spec: ClassifierSpec) -> dict[str, Any]:
    """Return the fields of a classifier in ``config.json``.

    Raises:
        ValueError: as :func:`encoder_fields`.
    """
    names = spec.labels.names
    return {
        **encoder_fields(spec.encoder),
        "architectures": [CLASSIFIER],
        **{f"head_{key}": getattr(spec.head, key) for key in _HEAD_KEYS},
        "clip_samples": spec.clip_samples,
        "multi_label": spec.multi_label,
        "problem_type": problem_type(spec.independent),
        "id2label": {str(n): name for n, name in enumerate(names)},
        "label2id": {name: n for n, name in enumerate(names)},
        # Pairs, since transformers sorts the keys of mappings when it saves the file.
        "labels": [list(each) for each in zip(spec.labels.mids, names, strict=True)],
    }


def encoder_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a model's encoder, which may have modules of pretraining as well."""
    return {
        name: value
        for name, value in weights.items()
        if name.split(".")[0] in PARTS and not name.startswith(_STATISTICS)
    }


def classifier_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a classifier under the names of the modelling code."""
    return {
        name.replace("encoder.", "model.", 1) if name.startswith("encoder.") else name: value
        for name, value in weights.items()
        if not name.startswith(f"encoder.{_STATISTICS}")
    }


def read_folder(fields: Mapping[str, Any], weights: Mapping[str, Any], path: Path) -> Checkpoint:
    """Read the encoder of such a folder.

    Args:
        fields: content of ``config.json``.
        weights: state dict of the weights file.
        path: path of the weights file.

    Raises:
        CheckpointError: a field is missing or invalid; it is named.
    """
    config = _parse(fields, path, _encoder_config)
    if is_classifier(fields):
        prefix = "model."
        weights = {n.removeprefix(prefix): v for n, v in weights.items() if n.startswith(prefix)}
    weights = {**weights, **_statistics(config)}
    training = recorded_training(fields)
    return Checkpoint(config, None, weights, encoder_only=True, training=training)


def read_classifier(
    fields: Mapping[str, Any], weights: Mapping[str, Any], path: Path
) -> tuple[ClassifierSpec, dict[str, Any]]:
    """Read the classifier of such a folder: its specification, and the weights under our names.

    Args:
        fields, weights, path: as in :func:`read_folder`.

    Raises:
        CheckpointError: a field is missing or invalid; it is named.
    """
    spec = _parse(fields, path, _classifier_spec)
    ours = {
        name.replace("model.", "encoder.", 1) if name.startswith("model.") else name: value
        for name, value in weights.items()
    }
    return spec, {**ours, **_statistics(spec.encoder, "encoder.")}


def _encoder_config(fields: Mapping[str, Any]) -> EncoderConfig:
    config = parse_config({**fields, "system": fields["system"], "input_stats": "fixed"})
    for key in _ENCODER_KEYS:
        if getattr(config, key) != fields[key]:
            raise ValueError(
                f"{key}={fields[key]!r}; {fields['system']!r} has {getattr(config, key)!r}"
            )
    return config


def _classifier_spec(fields: Mapping[str, Any]) -> ClassifierSpec:
    names = labels_of(fields)
    if names is None:
        raise ValueError("id2label is missing")
    independent = is_independent(fields)
    multi_label = bool(fields.get("multi_label", independent))
    pairs = [(mid, name) for mid, name in fields.get("labels") or ()]
    if tuple(name for _, name in pairs) != names:  # of an earlier task
        pairs, multi_label = [(f"class_{n}", name) for n, name in enumerate(names)], independent
    return ClassifierSpec(
        _encoder_config(fields),
        HeadConfig(len(names), **{key: fields[f"head_{key}"] for key in _HEAD_KEYS}),
        Labels(tuple(mid for mid, _ in pairs), names),
        independent,
        multi_label,
        int(fields["clip_samples"]),
    )


def _parse(fields: Mapping[str, Any], path: Path, parse: Any) -> Any:
    description = path.with_name(CONFIG_FILE)
    try:
        return parse(fields)
    except KeyError as error:
        raise CheckpointError(f"{description}: has no {error}") from error
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{description}: {first_line(error)}") from error


def _statistics(config: EncoderConfig, prefix: str = "") -> dict[str, Tensor]:
    """Return the state of the input normalisation."""
    norm = InputNorm(False, config.input_mean, config.input_std)
    return {f"{prefix}{_STATISTICS}{name}": value for name, value in norm.state_dict().items()}
