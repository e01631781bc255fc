"""Models for pretraining, built from ``model.*``."""

# No postponed annotations here: fairseq reads the types of the fields.
from dataclasses import dataclass, field
from typing import Any, Self

from fairseq.dataclass import FairseqDataclass

from mae_ast.core.encoder import mark_weight_decay
from mae_ast.core.systems import config_from
from mae_ast.core.transformer import TransformerLayer, compile_layers
from mae_ast.errors import user_errors
from mae_ast.models.weights import NamedWeights


@dataclass
class PretrainingModelConfig(FairseqDataclass):  # type: ignore[misc]
    """How a model is computed, of ``model.*``; it changes no figure."""

    checkpoint_activations: bool = field(
        default=False,
        metadata={
            "help": "keep of each layer its input alone, and compute the rest again for the "
            "backward: far less memory, a third more time"
        },
    )
    compile: bool = field(
        default=False,
        metadata={
            "help": "torch.compile the layers; for batches of one shape: set task.max_sample_size "
            "and task.min_sample_size alike"
        },
    )


class PretrainingModel(NamedWeights):
    """Base of the models that ``mae_ast_pretraining`` trains, second after the core's class."""

    @classmethod
    def build_model(cls, cfg: Any, task: Any) -> Self:
        """Build from ``model.*``, once it is known to work with the task's masks."""
        with user_errors():
            config = config_from(cfg)
            config.validate(task.cfg.mask_type)
            model = cls(config)
        mark_weight_decay(model)
        for layer in model.modules():
            if isinstance(layer, TransformerLayer):
                layer.checkpoint_activations = cfg.checkpoint_activations
        if cfg.compile:
            compile_layers(model)
        return model
