"""Convert configurations to and from Hugging Face's ``ASTForAudioClassification``.

``config.json`` describes the network, the class names and how scores are computed;
``preprocessor_config.json`` describes how the input is normalised and padded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mae_ast.core.frontend.fbank import NUM_MEL_BINS
from mae_ast.core.frontend.input_norm import EPS, TARGET_STD
from mae_ast.core.io.audio import SAMPLE_RATE
from mae_ast.core.io.plural import plural
from mae_ast.core.models.config import AUDIOSET_MEAN, AUDIOSET_STD, AstConfig

MODEL_TYPE = "audio-spectrogram-transformer"

# Fields of config.json: their name -> our names, and the default in transformers.
_FIELDS: dict[str, tuple[tuple[str, ...], Any]] = {
    "patch_size": (("ast_kernel_size_chan", "ast_kernel_size_time"), 16),
    "frequency_stride": (("ast_kernel_stride_chan",), 10),
    "time_stride": (("ast_kernel_stride_time",), 10),
    "max_length": (("position_frames",), 1024),
    "hidden_size": (("encoder_embed_dim",), 768),
    "num_hidden_layers": (("encoder_layers",), 12),
    "num_attention_heads": (("encoder_attention_heads",), 12),
    "intermediate_size": (("encoder_ffn_embed_dim",), 3072),
    "hidden_dropout_prob": (("dropout",), 0.0),
    "attention_probs_dropout_prob": (("attention_dropout",), 0.0),
    "layer_norm_eps": (("layer_norm_eps", "head_layer_norm_eps"), 1e-12),
}
# Fields of config.json that have a single supported value.
_SUPPORTED = {
    "hidden_act": "gelu",
    "qkv_bias": True,
    "num_mel_bins": NUM_MEL_BINS,
}
# The same for preprocessor_config.json.
_SUPPORTED_INPUT = {
    "feature_extractor_type": "ASTFeatureExtractor",
    "feature_size": 1,
    "sampling_rate": SAMPLE_RATE,
    "num_mel_bins": NUM_MEL_BINS,
}
# Statistics that make our normalisation an identity, for do_normalize=false.
_NOT_NORMALISED = (0.0, math.sqrt(TARGET_STD**2 - EPS))
# Fields of ours that must have one value, and why.
_REQUIRED = {
    "prefix_tokens": (2, "has 2"),
    "window_type": ("hanning", "has hanning"),
    "pool": ("prefix", "averages its prefix tokens"),
}
# True if scores are sigmoids, by problem_type; without one, transformers uses a softmax.
_INDEPENDENT = {
    None: False,
    "single_label_classification": False,
    "multi_label_classification": True,
}


def is_known(fields: Any) -> bool:
    """Return whether the content of a ``config.json`` describes such a model."""
    return isinstance(fields, Mapping) and fields.get("model_type") == MODEL_TYPE


def config_from_hugging_face(
    fields: Mapping[str, Any], preprocessor: Mapping[str, Any] | None = None
) -> AstConfig:
    """Return the configuration of a Hugging Face AST.

    Args:
        fields: content of ``config.json``.
        preprocessor: content of ``preprocessor_config.json``; default: AudioSet's statistics.

    Raises:
        ValueError: the model is of another kind, or a field has an unsupported value; it is named.
    """
    if fields.get("model_type") != MODEL_TYPE:
        raise ValueError(f"model_type is {fields.get('model_type')!r}, not {MODEL_TYPE!r}")
    given = preprocessor or {}
    for values, supported, where in (
        (fields, _SUPPORTED, ""),
        (given, _SUPPORTED_INPUT, " in preprocessor_config.json"),
    ):
        for key, value in supported.items():
            if values.get(key, value) != value:
                raise ValueError(f"{key} is {values[key]!r}{where}; only {value!r} is supported")
    values = {
        our: fields.get(their, default)
        for their, (ours, default) in _FIELDS.items()
        for our in ours
    }
    size, frames = values["ast_kernel_size_chan"], values["position_frames"]
    if not isinstance(size, int):
        raise ValueError(f"patch_size is {size!r}; only square patches (one number) are supported")
    mean, std = _statistics(given)
    config = AstConfig(
        **values,
        input_frames=given.get("max_length", frames),
        input_mean=mean,
        input_std=std,
        # 2 is the default in transformers.
        num_classes=len(labels_of(fields) or ()) or fields.get("num_labels", 2),
    )
    if _grid_of_input(config) != config.position_grid:
        raise ValueError(
            f"max_length is {config.input_frames} in preprocessor_config.json and {frames} in "
            "config.json; they must give the same number of patches"
        )
    return config


def labels_of(fields: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return the class names in the order of the outputs; ``None`` if ``config.json`` has none.

    Raises:
        ValueError: a class has no name.
    """
    names = fields.get("id2label")
    if names is None and isinstance(fields.get("label2id"), Mapping):
        names = {number: name for name, number in fields["label2id"].items()}
    if names is None:
        return None
    if not isinstance(names, Mapping):
        raise ValueError("id2label is not a mapping of class numbers to names")
    by_number = {str(number): str(name) for number, name in names.items()}
    try:
        return tuple(by_number[str(n)] for n in range(len(by_number)))
    except KeyError as error:
        raise ValueError(f"id2label has no class {error}") from error


def is_independent(fields: Mapping[str, Any]) -> bool:
    """Return whether scores are sigmoids (multi-label) instead of a softmax over all classes.

    Raises:
        ValueError: the model is not a classifier.
    """
    kind = fields.get("problem_type")
    if kind not in _INDEPENDENT:
        known = ", ".join(str(name) for name in _INDEPENDENT if name)
        raise ValueError(f"problem_type is {kind!r}; {known} are supported")
    return _INDEPENDENT[kind]


def problem_type(independent: bool) -> str:
    """Return the ``problem_type`` of a classifier; see :func:`is_independent`."""
    return next(kind for kind, is_one in _INDEPENDENT.items() if kind and is_one == independent)


def config_to_hugging_face(
    config: AstConfig, labels: Sequence[str] | None = None, independent: bool = True
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the contents of ``config.json`` and ``preprocessor_config.json``.

    Args:
        config: configuration of the model. Hugging Face's AST has one epsilon for all layer norms,
            and pads or cuts every clip to the frames of its positions.
        labels: class names.
        independent: scores are sigmoids (multi-label) instead of a softmax over all classes.

    Raises:
        ValueError: Hugging Face's AST cannot represent the model, or the number of labels differs
            from the number of classes.
    """
    for key, (value, description) in _REQUIRED.items():
        if getattr(config, key) != value:
            raise ValueError(f"{key}={getattr(config, key)}; Hugging Face's AST {description}")
    if _grid_of_input(config) != config.position_grid:
        raise ValueError(
            f"input_frames={config.input_frames} differs from position_frames="
            f"{config.position_frames}; Hugging Face's AST has as many positions as patches"
        )
    names = list(labels or (f"LABEL_{n}" for n in range(config.num_classes)))
    if len(names) != config.num_classes:
        raise ValueError(f"{plural(len(names), 'label')} for num_classes={config.num_classes}")
    kernel = (config.ast_kernel_size_chan, config.ast_kernel_size_time)
    if kernel[0] != kernel[1]:
        raise ValueError(
            f"patches of {kernel[0]} x {kernel[1]}; Hugging Face's AST has square ones"
        )
    fields = {
        "architectures": ["ASTForAudioClassification"],
        "model_type": MODEL_TYPE,
        **_SUPPORTED,
        **{their: getattr(config, ours[0]) for their, (ours, _) in _FIELDS.items()},
        "id2label": {str(n): name for n, name in enumerate(names)},
        "label2id": {name: n for n, name in enumerate(names)},
        "problem_type": problem_type(independent),
    }
    preprocessor = {
        **_SUPPORTED_INPUT,
        "max_length": config.input_frames or config.position_frames,
        "do_normalize": not _is_not_normalised(config),
        "mean": config.input_mean,
        "std": config.input_std,
        "padding_value": 0.0,
        "return_attention_mask": False,
    }
    return fields, preprocessor


def _statistics(preprocessor: Mapping[str, Any]) -> tuple[float, float]:
    """Return mean and std of the input."""
    if not preprocessor.get("do_normalize", True):
        return _NOT_NORMALISED
    mean = preprocessor.get("mean", AUDIOSET_MEAN)
    std = preprocessor.get("std", AUDIOSET_STD)
    if not all(isinstance(value, (int, float)) for value in (mean, std)) or not std > 0:
        raise ValueError(
            f"mean is {mean!r} and std {std!r} in preprocessor_config.json; a number and a "
            "positive number are needed"
        )
    return float(mean), float(std)


def _is_not_normalised(config: AstConfig) -> bool:
    found = (config.input_mean, config.input_std)
    return all(map(math.isclose, found, _NOT_NORMALISED))


def _grid_of_input(config: AstConfig) -> tuple[int, int]:
    return config.patch_shape.grid(config.input_frames or config.position_frames)
