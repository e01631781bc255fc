"""Where fine-tuning starts: an encoder of another network, made to what a training wants of it."""

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
    check_alike,
    from_timm,
    is_timm,
    without,
)
from mae_ast.core.checkpoints.wrappers import MODEL
from mae_ast.core.models.ast import Ast
from mae_ast.core.models.audio_mae import AudioMae
from mae_ast.core.models.config import AstConfig, VitConfig
from mae_ast.core.models.encoder import PARTS, Encoder, Vit, encoder_only
from mae_ast.core.models.registry import SYSTEMS, system_name
from mae_ast.core.models.ssast import FINETUNING_STRIDES, Ssast
from mae_ast.finetune.checkpoint import encoder_of
from mae_ast.hub.offline import cache_if_unreachable, offline_advice

TIMM = "timm:"  # before the name of a model of the package timm
_TORCH_FILES = (".pth", ".pt", ".bin")


def ast_encoder(config: AstConfig, source: str | None, random_weights: bool = False) -> Ast:
    """AST without its head, whose weights are those of another network.

    Args:
        config: what it is made of. Its input statistics hold where the source has none.
        source: ``timm:NAME``, with timm's weights of that name; a file with the state dict of a
            ViT of timm's; whatever :func:`mae_ast.finetune.checkpoint.encoder_of` takes, if SSAST
            or AST. ``None``: new weights.
        random_weights: of the source, no more than the input's statistics.

    Raises:
        ValueError, FileNotFoundError: there is no such source, or it is of another size or kind.
    """
    weights: Weights = {}
    if source is not None:
        config, weights = _weights_for(config, source, random_weights)
    model = Ast(config)
    if random_weights:
        weights = {name: v for name, v in weights.items() if name.startswith("batch_norm.")}
    model.load_state_dict(weights, strict=False)  # compared before; the head has none
    return encoder_only(model)


def start_encoder(model: AudioMae, source: str) -> None:
    """Give Audio-MAE's encoder the weights of a ViT of timm's; its decoder stays as it is.

    Positions are computed and stay; what the ViT had learned for CLS is added to CLS.

    Args:
        model: whose weights are replaced.
        source: ``timm:NAME``, with timm's weights of that name, or a file with a state dict.

    Raises:
        ValueError, FileNotFoundError: there is no such source, or it is of another size or kind.
    """
    key = "model.encoder_weights"
    found = _timm_weights(model.config, source, key)
    if found is None:
        raise ValueError(f"{key}={source}: is neither {TIMM}NAME nor a file of timm's")
    found["prefix_tokens"] = found["prefix_tokens"] + found.pop("positions.table")[:, :1]
    model.load_state_dict({**model.state_dict(), **found})


def finetuning_view(encoder: Encoder, overlap: bool, frames: int | None) -> Encoder:
    """An encoder whose patches overlap, or whose clips have another length; weights are copied.

    Learned positions are cut or interpolated to the new grid, as SSAST's authors do.

    Args:
        encoder: of a pretrained model; returned as it is where nothing is to change.
        overlap: patches of 16 follow one another by 10, those of 2 by 1.
        frames: clips are cut or zero-padded to so many; ``None``: as they were.

    Raises:
        ValueError: the encoder is no ViT, or the frames fill no patch.
    """
    if not overlap and frames is None:
        return encoder
    if not isinstance(encoder, Vit):
        raise ValueError(
            f"model.overlap={str(overlap).lower()} and model.input_frames={frames} are for SSAST, "
            f"AST and Audio-MAE; {system_name(encoder.config)} keeps its patches and positions: "
            "false and null"
        )
    found = dataclasses.asdict(finetuning_config(encoder.config, frames, overlap))
    # Of SSAST, what pretraining adds has no use where patches overlap.
    kind = VitConfig if isinstance(encoder, Ssast) else SYSTEMS[system_name(encoder.config)].config
    config = kind.from_mapping({**dataclasses.asdict(encoder.config), **found})
    view: Vit = encoder_only(SYSTEMS[system_name(config)].network(config))
    start_from(view, encoder)
    return view


def _weights_for(config: AstConfig, source: str, random_weights: bool) -> tuple[AstConfig, Weights]:
    """The encoder's weights out of a source, and the configuration with its input statistics."""
    found = _timm_weights(config, source, "model.checkpoint", random_weights)
    if found is not None:
        return config, found
    pretrained = encoder_of(source)
    if not isinstance(pretrained, Vit):
        raise ValueError(
            f"model.checkpoint={source} is of kind {system_name(pretrained.config)!r}; AST starts "
            "from a ViT: SSAST, AST or timm's. For others there is model._name=mae_ast_classifier"
        )
    statistics = {key: getattr(pretrained.config, key) for key in ("input_mean", "input_std")}
    config = dataclasses.replace(config, **statistics)
    started = Ast(config)
    try:
        start_from(started, pretrained)
    except ValueError as error:
        raise ValueError(f"model.checkpoint={source}: {error}") from error
    return config, {
        name: value
        for name, value in started.state_dict().items()
        if not name.startswith(Ast.only_for_pretraining)
    }


def _timm_weights(
    config: VitConfig, source: str, key: str, random_weights: bool = False
) -> Weights | None:
    """An encoder's weights out of a name or file of timm's; ``None``: the source is neither.

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
    """A network of timm's; its weights are downloaded into timm's own cache."""
    try:
        import timm
    except Exception as error:  # also torchvision, which it imports: it may not fit torch
        raise ValueError(
            f"{key}={TIMM}{name} needs the package timm, which cannot be imported "
            f"({_one_line(error)}); pip install 'mae-ast[timm]'"
        ) from error
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"; it has {', '.join(near)}" if near else ""
        raise ValueError(f"{key}={TIMM}{name}: timm {timm.__version__} has no model {name!r}{hint}")
    if not pretrained:
        return timm.create_model(name, pretrained=False)
    with cache_if_unreachable() as offline:
        try:
            return timm.create_model(name, pretrained=True)
        except Exception as error:  # of the network, the hub, or its cache: of many classes
            reason = _one_line(error)
            if offline:
                reason = f"not in the cache, and {offline}; {offline_advice()}"
            raise FileNotFoundError(
                f"{key}={TIMM}{name}: cannot load its weights ({reason})"
            ) from error


def _timm_state(path: Path) -> Mapping[str, Any] | None:
    """The state dict in a file of timm's; ``None``: it is of another kind, or there is none."""
    if not path.is_file():
        return None
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                names = list(file.keys())
                return {name: file.get_tensor(name) for name in names} if is_timm(names) else None
        except SafetensorError:
            return None  # which is said elsewhere
    if path.suffix not in _TORCH_FILES:
        return None
    state = read_state(path).get(MODEL)
    return state if isinstance(state, Mapping) and is_timm(state) else None


def _one_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def finetuning_config(
    config: VitConfig, frames: int | None = None, overlap: bool = True
) -> VitConfig:
    """The encoder of a pretrained model as SSAST's authors fine-tune it, with overlap.

    :func:`mae_ast.finetune.initialize.start_from` fills it.

    Args:
        config: of the pretrained model.
        frames: clips are cut or zero-padded to so many, and positions are a grid of them;
            ``None``: as they were.
        overlap: ``False``: strides as they were.
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
    """Copy an encoder into another that may have other strides or frames; heads stay as they are.

    The patches' projection is copied, positions are those that the other has on the new grid. The
    input's statistics are copied too, unless the configurations differ in them.

    Args:
        model: whose encoder is replaced.
        pretrained: where it comes from.

    Raises:
        ValueError: they differ in width, depth, the size of patches or the filterbank's window, or
            the model has a distillation token that is not in the other.
    """
    new, old = model.config, pretrained.config
    check_alike(new, {key: getattr(old, key) for key in SHARED_KEYS})
    if new.prefix_tokens > old.prefix_tokens:
        raise ValueError("prefix_tokens=2, but the pretrained model has no distillation token")
    weights = {
        name: value
        for name, value in pretrained.state_dict().items()
        if name.split(".")[0] in PARTS
    }
    table = pretrained.positions(new.position_grid)  # of no use where ours can be computed
    weights["positions.table"] = torch.cat(
        (table[:, : new.prefix_tokens], table[:, old.prefix_tokens :]), dim=1
    )
    weights["prefix_tokens"] = weights["prefix_tokens"][:, : new.prefix_tokens]
    if (new.input_mean, new.input_std) != (old.input_mean, old.input_std):
        weights = without(weights, ("batch_norm.",))
    model.load_state_dict(weights, strict=False)
