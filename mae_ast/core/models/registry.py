"""The systems of this project by name: what describes each, and what is built of that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mae_ast.core.models.ast import Ast
from mae_ast.core.models.audio_mae import AudioMae
from mae_ast.core.models.config import (
    AstConfig,
    AudioMaeConfig,
    MaeAstConfig,
    SsastConfig,
    VitConfig,
)
from mae_ast.core.models.encoder import Vit
from mae_ast.core.models.mae_ast import MaeAst
from mae_ast.core.models.ssast import Ssast


@dataclass(frozen=True)
class System:
    """A kind of model.

    Args:
        config: a dataclass with ``validate`` and ``from_mapping``, the keys of ``model.*``.
        network: takes such a configuration; an :class:`mae_ast.core.models.encoder.Encoder`.
    """

    config: type[Any]
    network: type[Any]


# "vit" is the encoder that AST and SSAST share, such as SSAST's view for fine-tuning.
SYSTEMS = {
    "mae_ast": System(MaeAstConfig, MaeAst),
    "ssast": System(SsastConfig, Ssast),
    "ast": System(AstConfig, Ast),
    "audio_mae": System(AudioMaeConfig, AudioMae),
    "vit": System(VitConfig, Vit),
}


def system_name(config: Any) -> str:
    """The name of the system that a configuration describes; it may be of a derived class.

    Raises:
        ValueError: it describes none.
    """
    for kind in type(config).__mro__:
        for name, system in SYSTEMS.items():
            if system.config is kind:
                return name
    raise ValueError(f"{type(config).__name__} describes none of {', '.join(SYSTEMS)}")


def parse_config(values: Any, default: str = "mae_ast") -> Any:
    """The configuration in ``model.*`` or a checkpoint's copy of it, validated.

    Args:
        values: a mapping; its ``_name`` or ``system`` names the system.
        default: the system of a mapping that names none, such as the released files'.

    Raises:
        ValueError: no such system, or the configuration cannot work.
    """
    name = values.get("system") or values.get("_name") or default
    if name not in SYSTEMS:
        raise ValueError(f"describes a model of kind {name!r}; {', '.join(SYSTEMS)} are known")
    config = SYSTEMS[name].config.from_mapping(values)
    config.validate()
    return config
