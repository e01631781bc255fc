"""Registry of systems: name, configuration class and model class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mae_ast.core.models.ast import Ast
from mae_ast.core.models.audio_mae import AudioMae
from mae_ast.core.models.config import (
    AstConfig,
    AudioMaeConfig,
    EncoderConfig,
    MaeAstConfig,
    PretrainingConfig,
    SsastConfig,
    VitConfig,
)
from mae_ast.core.models.encoder import Encoder
from mae_ast.core.models.mae_ast import MaeAst
from mae_ast.core.models.ssast import Ssast


@dataclass(frozen=True)
class System:
    """One system: its classes, and how it is called.

    Args:
        config: its fields are the keys of ``model.*``.
        network: an :class:`Encoder`, constructed from a configuration.
        starts_from_images: pretraining can start from the weights of an image ViT.
        encoder: class of the encoder without the modules of pretraining, for fine-tuning.
        title: its name in the literature.
        paper_url: URL of the paper.
        tags: tags on the Hugging Face hub.
    """

    config: type[EncoderConfig]
    network: type[Any]
    starts_from_images: bool = False
    encoder: type[Encoder] = Encoder
    title: str = ""
    paper_url: str | None = None
    tags: tuple[str, ...] = ()


# "vit" is a ViT encoder without heads, such as SSAST in fine-tuning.
SYSTEMS = {
    "mae_ast": System(
        MaeAstConfig,
        MaeAst,
        title="MAE-AST",
        paper_url="https://arxiv.org/abs/2203.16691",
        tags=("masked-autoencoder",),
    ),
    "ssast": System(
        SsastConfig,
        Ssast,
        title="SSAST",
        paper_url="https://arxiv.org/abs/2110.09784",
        tags=("ssast",),
    ),
    "ast": System(
        AstConfig,
        Ast,
        title="AST",
        paper_url="https://arxiv.org/abs/2104.01778",
        tags=("ast",),
    ),
    "audio_mae": System(
        AudioMaeConfig,
        AudioMae,
        starts_from_images=True,
        title="Audio-MAE",
        paper_url="https://arxiv.org/abs/2207.06405",
        tags=("masked-autoencoder", "audio-mae"),
    ),
    "vit": System(VitConfig, Encoder, title="Spectrogram transformer encoder"),
}


def system_name(config: Any) -> str:
    """Return the name of the system of a configuration, which may be of a derived class.

    Raises:
        ValueError: the configuration belongs to no system.
    """
    for kind in type(config).__mro__:
        for name, system in SYSTEMS.items():
            if system.config is kind:
                return name
    raise ValueError(
        f"{type(config).__name__} is not a configuration of any system ({', '.join(SYSTEMS)})"
    )


def build_encoder(config: EncoderConfig) -> Encoder:
    """Build the encoder of a configuration's system, without the modules of pretraining.

    Raises:
        ValueError: as :func:`system_name`.
    """
    return SYSTEMS[system_name(config)].encoder(config)


def parse_config(values: Any, default: str = "mae_ast") -> EncoderConfig:
    """Parse a model configuration from ``model.*`` or a checkpoint.

    Args:
        values: mapping of keys to values; ``system`` or ``_name`` gives the name of the system.
        default: name of the system if the mapping gives none, as in the released MAE-AST files.

    Raises:
        ValueError: the system is unknown, or the configuration is invalid.
    """
    name = values.get("system") or values.get("_name") or default
    if name not in SYSTEMS:
        raise ValueError(f"unknown system {name!r}; must be one of {', '.join(SYSTEMS)}")
    return SYSTEMS[name].config.from_mapping(values)


def parse_pretraining_config(values: Any, mask_type: str) -> PretrainingConfig:
    """Parse the configuration of a model to be pretrained with a type of mask.

    Raises:
        ValueError: the system is not pretrained by masking, or as :func:`parse_config` and
            :meth:`PretrainingConfig.check_pretraining`.
    """
    config = parse_config(values)
    if not isinstance(config, PretrainingConfig):
        raise ValueError(f"{system_name(config)!r} is not pretrained by masking")
    config.check_pretraining(mask_type)
    return config
