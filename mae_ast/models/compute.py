"""Activation checkpointing and ``torch.compile`` as settings of a run."""

# No postponed annotations: fairseq reads the field types at run time.
from dataclasses import dataclass
from typing import Any

from fairseq.dataclass import FairseqDataclass
from torch import nn

from mae_ast.core.nn.transformer import TransformerLayer, compile_layers
from mae_ast.core.settings import setting


@dataclass
class ComputeConfig(FairseqDataclass):  # type: ignore[misc]
    """Settings under ``model.*`` that change a training's speed and memory but not its result."""

    checkpoint_activations: bool = setting(
        False,
        help="activation checkpointing: recompute activations in the backward pass; far less "
        "memory, about 33 % slower",
    )
    compile: bool = setting(
        False,
        help="compile the transformer layers with torch.compile; meant for batches of one shape "
        "(set task.max_sample_size and task.min_sample_size to the same value)",
    )


def set_compute(model: nn.Module, cfg: Any) -> None:
    """Apply the settings of :class:`ComputeConfig` to a model's transformer layers.

    Args:
        model: model to be trained.
        cfg: settings with the keys of :class:`ComputeConfig`.
    """
    for layer in model.modules():
        if isinstance(layer, TransformerLayer):
            layer.checkpoint_activations = cfg.checkpoint_activations
    if cfg.compile:
        compile_layers(model)
