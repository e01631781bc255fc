"""Initialise an encoder for fine-tuning from a timm, SSAST, AST or Audio-MAE checkpoint."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mae_ast.core.checkpoints.reader import read_state
from mae_ast.core.checkpoints.timm import (
    SHARED_KEYS,
    Weights,
    check_same,
    from_timm,
    is_timm,
    without,
)
from mae_ast.core.checkpoints.wrappers import MODEL
from mae_ast.core.io.first_line import first_line
from mae_ast.core.models.ast import Ast
from mae_ast.core.models.audio_mae import AudioMae
from mae_ast.core.models.config import AstConfig, VitConfig
from mae_ast.core.models.encoder import PARTS, Encoder, Vit, encoder_only
from mae_ast.core.models.registry import SYSTEMS, system_name
from mae_ast.core.models.ssast import FINETUNING_STRIDES, Ssast
from mae_ast.finetune.checkpoint import encoder_of
from mae_ast.hub.offline import cache_if_unreachable, offline_advice

TIMM = "timm:"  # prefix of names of timm models
_TORCH_FILES = (".pth", ".pt", ".bin")


def ast_encoder(config: AstConfig, source: str | None, random_weights: bool = False) -> Ast:
    """Build an AST encoder without its head, initialised from another model.

    Args:
        config: configuration of the encoder. Its input statistics are used if the source has none.
        source: ``timm:NAME`` for a timm model with its pretrained weights; a file with the state
            dict of a timm ViT; or any source of
            :func:`mae_ast.finetune.checkpoint.encoder_of` with a ViT. ``None``: random weights.
        random_weights: use only the input statistics of the source.

    Raises:
        ValueError, FileNotFoundError: the source does not exist, or is of another size or kind.
    """
    weights: Weights = {}
    if source is not None:
        config, weights = _weights_for(config, source, random_weights)
    model = Ast(config)
    if random_weights:
        weights = {name: v for name, v in weights.items() if name.startswith("batch_norm.")}
    model.load_state_dict(weights, strict=False)  # checked before; the head is not in it
    return encoder_only(model)


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
    key = "model.encoder_weights"
    found = _timm_weights(model.config, source, key)
    if found is None:
        raise ValueError(f"{key}={source}: neither {TIMM}NAME nor a file of timm weights")
    found["prefix_tokens"] = found["prefix_tokens"] + found.pop("positions.table")[:, :1]
    model.load_state_dict({**model.state_dict(), **found})


def finetuning_view(encoder: Encoder, overlap: bool, frames: int | None) -> Encoder:
    """Return a copy of an encoder with overlapping patches or another input length.

    Learned positions are cropped or interpolated to the new grid, as SSAST's authors do.

    Args:
        encoder: encoder of a pretrained model; returned unchanged if no change is requested.
        overlap: patches of 16 get a stride of 10, patches of 2 a stride of 1.
        frames: clips are cut or zero-padded to this length; ``None``: unchanged.

    Raises:
        ValueError: the encoder is not a ViT, or ``frames`` is shorter than a patch.
    """
    if not overlap and frames is None:
        return encoder
    if not isinstance(encoder, Vit):
        raise ValueError(
            f"model.overlap={str(overlap).lower()} and model.input_frames={frames} are supported "
            f"for SSAST, AST and Audio-MAE only; set false and null for "
            f"{system_name(encoder.config)}"
        )
    found = dataclasses.asdict(finetuning_config(encoder.config, frames, overlap))
    # SSAST's pretraining modules do not support overlapping patches.
    kind = VitConfig if isinstance(encoder, Ssast) else SYSTEMS[system_name(encoder.config)].config
    config = kind.from_mapping({**dataclasses.asdict(encoder.config), **found})
    view: Vit = encoder_only(SYSTEMS[system_name(config)].network(config))
    start_from(view, encoder)
    return view


def _weights_for(config: AstConfig, source: str, random_weights: bool) -> tuple[AstConfig, Weights]:
    """Read encoder weights from a source; set its input statistics in the configuration."""
    found = _timm_weights(config, source, "model.checkpoint", random_weights)
    if found is not None:
        return config, found
    pretrained = encoder_of(source)
    if not isinstance(pretrained, Vit):
        raise ValueError(
            f"model.checkpoint={source} is of kind {system_name(pretrained.config)!r}; AST can be "
            "initialised from a ViT only (SSAST, AST, timm); for other systems set "
            "model._name=mae_ast_classifier"
        )
    statistics = {key: getattr(pretrained.config, key) for key in ("input_mean", "input_std")}
    config = dataclasses.replace(config, **statistics)
    model = Ast(config)
    try:
        start_from(model, pretrained)
    except ValueError as error:
        raise ValueError(f"model.checkpoint={source}: {error}") from error
    return config, {
        name: value
        for name, value in model.state_dict().items()
        if not name.startswith(Ast.only_for_pretraining)
    }


def _timm_weights(
    config: VitConfig, source: str, key: str, random_weights: bool = False
) -> Weights | None:
    """Read encoder weights from a timm model or file; ``None`` if the source is neither.

    Errors name the source and its ``key``.
    """
    state, heads = None, None
    if source.startswith(TIMM):
        network = _from_timm_package(source.removeprefix(TIMM), key, pretrained=not random_weights)
        blocks = getattr(network, "blocks", None)
        heads = blocks[0].attn.num_heads if blocks and hasattr(blocks[0], "attn") else None
        state = network.state_dict()
    else:
        state = _timm_state(Path(source))
    if state is None:
        return None
    try:
        return from_timm(config, state, heads)
    except ValueError as error:
        raise ValueError(f"{key}={source}: {error}") from error


def _from_timm_package(name: str, key: str, pretrained: bool) -> Any:
    """Create a timm model; its weights are downloaded to timm's own cache."""
    try:
        import timm
    except Exception as error:  # timm imports torchvision, which may not match torch
        raise ValueError(
            f"{key}={TIMM}{name} needs the package timm, which cannot be imported "
            f"({first_line(error)}); pip install 'mae-ast[timm]'"
        ) from error
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise ValueError(f"{key}={TIMM}{name}: timm {timm.__version__} has no model {name!r}{hint}")
    if not pretrained:
        return timm.create_model(name, pretrained=False)
    with cache_if_unreachable() as offline:
        try:
            return timm.create_model(name, pretrained=True)
        except Exception as error:  # network, hub or cache errors, of many classes
            reason = first_line(error)
            if offline:
                reason = f"not in the cache, and {offline}; {offline_advice()}"
            raise FileNotFoundError(
                f"{key}={TIMM}{name}: cannot load its weights ({reason})"
            ) from error


def _timm_state(path: Path) -> Mapping[str, Any] | None:
    """Read a timm state dict from a file; ``None`` if it does not exist or is of another kind."""
    if not path.is_file():
        return None
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                names = list(file.keys())
                return {name: file.get_tensor(name) for name in names} if is_timm(names) else None
        except SafetensorError:
            return None  # reported when the file is read as a checkpoint of ours
    if path.suffix not in _TORCH_FILES:
        return None
    state = read_state(path).get(MODEL)
    return state if isinstance(state, Mapping) and is_timm(state) else None


def finetuning_config(
    config: VitConfig, frames: int | None = None, overlap: bool = True
) -> VitConfig:
    """Return an encoder's configuration for fine-tuning with overlap, as SSAST's authors do.

    :func:`start_from` copies the weights into such an encoder.

    Args:
        config: configuration of the pretrained model.
        frames: clips are cut or zero-padded to this length, which the position grid covers;
            ``None``: unchanged.
        overlap: use overlapping patches; ``False``: keep the strides.
    """
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(VitConfig)}
    for axis in ("time", "chan") if overlap else ():
        size = values[f"ast_kernel_size_{axis}"]
        values[f"ast_kernel_stride_{axis}"] = FINETUNING_STRIDES.get(size, size)
    if frames is not None:
        values["position_frames"] = values["input_frames"] = frames
    return VitConfig(**values)


@torch.no_grad()
def start_from(model: Vit, pretrained: Vit) -> None:
    """Copy the encoder weights of a model into one that may have other strides or frames.

    Positions are cropped or interpolated to the new grid. Input statistics are copied only if both
    configurations have the same. Heads are unchanged.

    Args:
        model: the model whose encoder weights are replaced.
        pretrained: the model that they are copied from.

    Raises:
        ValueError: the models differ in width, depth, heads, patch size or window type, or only
            ``model`` has a distillation token.
    """
    new, old = model.config, pretrained.config
    check_same(new, {key: getattr(old, key) for key in SHARED_KEYS})
    if new.prefix_tokens > old.prefix_tokens:
        raise ValueError("prefix_tokens=2, but the pretrained model has no distillation token")
    weights = {
        name: value
        for name, value in pretrained.state_dict().items()
        if name.split(".")[0] in PARTS
    }
    table = pretrained.positions(new.position_grid)  # ignored if our positions are fixed
    weights["positions.table"] = torch.cat(
        (table[:, : new.prefix_tokens], table[:, old.prefix_tokens :]), dim=1
    )
    weights["prefix_tokens"] = weights["prefix_tokens"][:, : new.prefix_tokens]
    if (new.input_mean, new.input_std) != (old.input_mean, old.input_std):
        weights = without(weights, ("batch_norm.",))
    model.load_state_dict(weights, strict=False)
