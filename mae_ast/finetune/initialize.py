"""Start of fine-tuning: the final configuration of an encoder, and its initial weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from mae_ast.core.checkpoints.timm import SHARED_KEYS, Weights, check_same
from mae_ast.core.models.audio_mae import AudioMae
from mae_ast.core.models.config import (
    FINETUNING_STRIDES,
    AstArchitecture,
    AstConfig,
    EncoderConfig,
    VitConfig,
)
from mae_ast.core.models.registry import system_name
from mae_ast.core.nn.positions import FixedPositions, fit_positions
from mae_ast.core.settings import take
from mae_ast.finetune.image_weights import TIMM, timm_weights

_TRAINING_KEYS = (
    *("dropout", "attention_dropout", "activation_dropout", "encoder_layerdrop", "precision"),
    *("input_mean", "input_std"),
)

C = TypeVar("C", bound=EncoderConfig)


def start_from_checkpoint(cfg: Any) -> tuple[EncoderConfig, Weights]:
    """Return configuration and weights of the encoder of a pretrained or fine-tuned model.

    Args:
        cfg: settings ``model.*`` of a classifier: ``checkpoint``, or ``architecture_of`` for random
            weights; overlap, length and regularisation of the encoder.

    Raises:
        ValueError, FileNotFoundError: as :func:`mae_ast.load`; or a setting is invalid.
    """
    from mae_ast.hub.load import read_encoder  # imports the hub's client; pretraining needs none

    config, weights = read_encoder(cfg.checkpoint or cfg.architecture_of)
    final = for_training(finetuning_config(config, cfg.overlap, cfg.input_frames), cfg)
    return final, (fitted(weights, config, final) if cfg.checkpoint else {})


def start_ast(cfg: Any, num_classes: int) -> tuple[EncoderConfig, Weights]:
    """Return configuration and weights of an AST encoder, initialised from another model.

    Args:
        cfg: settings ``model.*`` with the architecture. ``checkpoint`` (or ``architecture_of``, for
            random weights) is ``timm:NAME`` for a timm model with its pretrained weights, a file
            with the state dict of a timm ViT, or any source of :func:`mae_ast.load` with a ViT; its
            input statistics are used unless ``cfg`` has its own. If both are ``None``, the weights
            are random.
        num_classes: number of classes.

    Raises:
        ValueError, FileNotFoundError: the source does not exist, or is of another size or kind.
    """
    from mae_ast.hub.load import read_encoder  # as above

    architecture = dataclasses.asdict(take(AstArchitecture, cfg))
    config = for_training(AstConfig(**architecture, num_classes=num_classes), cfg)
    key = "checkpoint" if cfg.checkpoint else "architecture_of"
    source = getattr(cfg, key)
    if not source:
        return config, {}
    with _named(f"model.{key}={source}"):
        weights = timm_weights(config, source, random_weights=not cfg.checkpoint)
        if weights is None:
            pretrained, found = read_encoder(source)
            if not pretrained.layer_norm_first or not pretrained.prefix_tokens:
                raise ValueError(
                    f"is of kind {system_name(pretrained)!r}; AST can be initialised from a ViT "
                    "only (SSAST, AST, timm); for other systems set model._name=mae_ast_classifier"
                )
            statistics = {key: getattr(pretrained, key) for key in ("input_mean", "input_std")}
            config = for_training(dataclasses.replace(config, **statistics), cfg)
            weights = fitted(found, pretrained, config)
    weights = {name: value for name, value in weights.items() if "batch_norm." not in name}
    return config, (weights if cfg.checkpoint else {})


def start_encoder(model: AudioMae, source: str) -> None:
    """Initialise Audio-MAE's encoder from a timm ViT; the decoder is unchanged.

    Positions are fixed and unchanged; the ViT's learned position of CLS is added to the CLS token.

    Args:
        model: the model whose encoder weights are replaced.
        source: ``timm:NAME`` for a timm model with its pretrained weights, or a file with a state
            dict.

    Raises:
        ValueError, FileNotFoundError: the source does not exist, or is of another size or kind.
    """
    fields = dataclasses.asdict(model.config) | {"prefix_tokens": model.config.prefix_tokens}
    with _named(f"model.encoder_weights={source}"):
        found = timm_weights(VitConfig.from_mapping(fields), source)  # with learned positions
        if found is None:
            raise ValueError(f"neither {TIMM}NAME nor a file of timm weights")
    found["prefix_tokens"] = found["prefix_tokens"] + found.pop("positions.table")[:, :1]
    model.load_state_dict({**model.state_dict(), **found})


def finetuning_config(config: C, overlap: bool = False, frames: int | None = None) -> C:
    """Return an encoder's configuration for fine-tuning, as SSAST's authors do.

    Args:
        config: configuration of the pretrained model.
        overlap: patches of 16 get a stride of 10, patches of 2 a stride of 1.
        frames: clips are cut or zero-padded to this length, which the position grid covers;
            ``None``: unchanged.
    """
    values: dict[str, Any] = {}
    for axis in ("time", "chan") if overlap else ():
        size = getattr(config, f"ast_kernel_size_{axis}")
        values[f"ast_kernel_stride_{axis}"] = FINETUNING_STRIDES.get(size, size)
    if frames is not None:
        values["position_frames"] = values["input_frames"] = frames
    return _replace(config, values)


def for_training(config: C, cfg: Any) -> C:
    """Return a configuration with the regularisation, statistics and dtype of a training.

    Args:
        config: configuration of the encoder.
        cfg: settings ``model.*`` of a classifier; ``None`` leaves a value as it is.
    """
    values = {key: getattr(cfg, key) for key in _TRAINING_KEYS}
    values = {key: value for key, value in values.items() if value is not None}
    return _replace(config, {**values, "input_stats": "fixed", "dropout_input": 0.0})


@torch.no_grad()
def fitted(weights: Weights, old: EncoderConfig, new: EncoderConfig) -> Weights:
    """Fit the weights of an encoder to one that may have other strides, frames or prefix tokens.

    Learned positions are cropped or interpolated to the new grid, fixed ones computed for it.

    Args:
        weights: weights of the pretrained encoder.
        old: its configuration.
        new: configuration of the encoder that starts from it.

    Raises:
        ValueError: the encoders differ in width, depth, heads, patch size or window type, or only
            the new one has a distillation token.
    """
    check_same(new, {key: getattr(old, key) for key in SHARED_KEYS})
    num_new, num_old = new.prefix_tokens, old.prefix_tokens
    if num_new > num_old:
        raise ValueError(
            f"prefix_tokens={num_new}, but the pretrained model has no distillation token"
        )
    found = dict(weights)
    if num_new:
        found["prefix_tokens"] = found["prefix_tokens"][:, :num_new]
    if new.positions != "learned":
        return found
    if old.positions == "learned":
        table = found["positions.table"]
        prefix, patches = table.split([num_old, table.shape[1] - num_old], dim=1)
        if old.position_grid != new.position_grid:
            patches = fit_positions(patches, old.position_grid, new.position_grid)
    else:
        shape, width = new.patch_shape, new.encoder_embed_dim
        table = FixedPositions(old.positions, num_old, shape, width)(new.position_grid)
        prefix, patches = table[:, :num_old], table[:, num_old:]
    found["positions.table"] = torch.cat((prefix[:, :num_new], patches), dim=1)
    return found


@contextmanager
def _named(setting: str) -> Iterator[None]:
    """Put the setting that an error is about in front of its message."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{setting}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{setting}: {error}") from error


def _replace(config: C, values: dict[str, Any]) -> C:
    """Replace those values that are fields of the configuration, not fixed in its system."""
    fields = {field.name for field in dataclasses.fields(config)}
    return dataclasses.replace(config, **{k: v for k, v in values.items() if k in fields})
