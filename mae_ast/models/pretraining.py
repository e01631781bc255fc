"""fairseq models for pretraining: each system of the registry that predicts masked patches."""

# No postponed annotations: fairseq reads the field types at run time.
from dataclasses import dataclass, make_dataclass
from typing import Any, Optional

from fairseq.models import register_model
from typing_extensions import Self

from mae_ast.core.models.encoder import MaskedEncoder, mark_weight_decay
from mae_ast.core.models.registry import SYSTEMS, System, parse_pretraining_config
from mae_ast.core.settings import setting
from mae_ast.finetune.initialize import start_encoder
from mae_ast.models.compute import ComputeConfig, set_compute
from mae_ast.models.weights import CheckedWeights


@dataclass
class ImageWeights:
    """Setting of the systems whose encoder is a ViT."""

    encoder_weights: Optional[str] = setting(  # noqa: UP045
        None,
        help="initial weights of the encoder: timm:NAME, or a file with the state dict of a timm "
        "ViT; null: random weights",
    )


class PretrainingModel(CheckedWeights):
    """Base class of the models that ``mae_ast_pretraining`` trains; follows the core's class."""

    @classmethod
    def build_model(cls, cfg: Any, task: Any) -> Self:
        """Build the model from ``model.*``, after checking that it supports the task's masks."""
        config = parse_pretraining_config(cfg, task.cfg.mask_type)
        model = cls(config)
        if weights := getattr(cfg, "encoder_weights", None):
            start_encoder(model, weights)
        mark_weight_decay(model)
        set_compute(model, cfg)
        return model


def register(name: str, system: System) -> None:
    """Register a system with fairseq: settings ``model.*`` and the network with the same keys."""
    network = system.network
    bases = (ImageWeights, system.config) if system.starts_from_images else (system.config,)
    settings = make_dataclass(f"{network.__name__}Settings", (), bases=(ComputeConfig, *bases))
    settings.__module__ = __name__
    settings.__doc__ = "Settings under ``model.*``: the core's, and how the training runs."
    model = type(f"Fairseq{network.__name__}", (network, PretrainingModel), {})
    model.__doc__ = f"{network.__name__} as a fairseq model, with the same flat state dict keys."
    register_model(name, dataclass=settings)(model)


for _name, _system in SYSTEMS.items():
    if issubclass(_system.network, MaskedEncoder):
        register(_name, _system)
