"""Settings of how layers are computed in training: activation checkpointing and torch.compile."""

# No postponed annotations here: fairseq reads the types of the fields.
from dataclasses import dataclass, field
from typing import Any

from fairseq.dataclass import FairseqDataclass
from torch import nn

from mae_ast.core.nn.transformer import TransformerLayer, compile_layers


@dataclass
class ComputeConfig(FairseqDataclass):  # type: ignore[misc]
    """Keys of ``model.*`` that change speed and memory of a training, and no result."""

    checkpoint_activations: bool = field(
        default=False,
        metadata={"help": "activation checkpointing: far less memory, about 33 % slower"},
    )
    compile: bool = field(
        default=False,
        metadata={
            "help": "torch.compile the layers; for batches of one shape: set task.max_sample_size "
            "and task.min_sample_size alike"
        },
    )


def set_compute(model: nn.Module, cfg: Any) -> None:
    """Let a model's transformer layers be computed as ``model.*`` says.

    Args:
        model: to be trained.
        cfg: settings with the keys of :class:`ComputeConfig`.
    """
    for layer in model.modules():
        if isinstance(layer, TransformerLayer):
            layer.checkpoint_activations = cfg.checkpoint_activations
    if cfg.compile:
        compile_layers(model)
