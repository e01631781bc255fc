"""What a pretrained model is good for afterwards: an encoder, (B, L) -> hidden states (B, N, D).

Every system of this project offers the same few things, and what stands on top uses no others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Protocol, TypeVar

from torch import Tensor, nn

from mae_ast.core.frontend.fbank import num_frames_of
from mae_ast.core.frontend.input_norm import InputNorm
from mae_ast.core.frontend.patches import PatchShape
from mae_ast.core.nn.transformer import SelfAttention, Transformer, TransformerLayer


class Encoder(Protocol):
    """What is asked of a system: a module with these parts and methods.

    Its configuration has ``encoder_layers``, ``encoder_embed_dim`` and ``input_frames``, which is
    ``None`` where clips of any length are taken as they are.
    """

    only_for_pretraining: ClassVar[tuple[str, ...]]
    config: Any
    patch_shape: PatchShape
    precision: str
    batch_norm: InputNorm
    encoder: Transformer
    training: bool

    def hidden_states(self, source: Tensor, lengths: Tensor | None = None) -> list[Tensor]:
        """Per layer (B, N, D) of waveforms (B, L) or log-mel (B, T, F)."""

    def state_dict(self) -> dict[str, Any]:
        """Of a module."""

    def train(self, mode: bool = True) -> Any:
        """Of a module."""

    def eval(self) -> Any:
        """Of a module."""

    def log_mel(self, waveforms: Tensor) -> Tensor:
        """(B, L) -> (B, T, F) float32, not normalised."""


class MaskedEncoder(Encoder, Protocol):
    """A system in pretraining: it says of patches that a mask hides what they are."""

    __call__: Callable[..., Any]

    def patches(self, source: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Normalised patches (B, N, P) float32 of waveforms or log-mel."""


E = TypeVar("E", bound=Encoder)


def encoder_only(model: E) -> E:
    """Leave of a model what ``hidden_states`` needs, in float32 and independent of the batch.

    Without the rest, no parameter stays without a gradient (but the stack's norm of pre-norm
    layers, where only ``hidden_states`` are used).
    """
    for name in model.only_for_pretraining:
        if hasattr(model, name):  # a file may have held the encoder alone
            delattr(model, name)
    model.precision = "float32"
    model.batch_norm.update = False
    model.encoder.layerdrop = 0.0
    return model


def last_hidden_state(model: Encoder, states: list[Tensor]) -> Tensor:
    """The encoder's output (B, N, D): the last layer's, of pre-norm layers after the final norm."""
    stack = model.encoder
    out: Tensor = stack.layer_norm(states[-1].float()) if stack.norm_first else states[-1]
    return out


def num_columns_of(model: Encoder, source: Tensor, lengths: Tensor | None) -> Tensor | None:
    """(B,) int64: columns of patches (time steps) that are each clip's own; ``None``: all are.

    So they are in a network that fills clips up to a fixed length, and attends to all of it.
    """
    if lengths is None or model.config.input_frames is not None:
        return None
    frames = num_frames_of(lengths) if source.ndim == 2 else lengths
    return model.patch_shape.grid(frames)[0]


def mark_weight_decay(model: nn.Module) -> None:
    """Mark what an optimizer that honours ``p.no_decay`` leaves without weight decay.

    That is all but the matrices of linear layers: biases, norms, tokens, learned positions.
    """
    matrices = {id(part.weight) for part in model.modules() if isinstance(part, nn.Linear)}
    for parameter in model.parameters():
        parameter.no_decay = id(parameter) not in matrices  # type: ignore[attr-defined]


def set_dropout(
    model: Encoder,
    dropout: float,
    attention_dropout: float,
    activation_dropout: float,
    layerdrop: float,
) -> None:
    """Give an encoder's layers other regularisation than they were pretrained with.

    Raises:
        ValueError: one is no probability.
    """
    given = {
        "dropout": dropout,
        "attention_dropout": attention_dropout,
        "activation_dropout": activation_dropout,
        "layerdrop": layerdrop,
    }
    for name, value in given.items():
        if not 0 <= value < 1:
            raise ValueError(f"{name}={value}; a probability from 0 to below 1")
    for module in model.encoder.modules():
        if isinstance(module, Transformer):
            module.dropout.p = dropout
            module.layerdrop = layerdrop
        elif isinstance(module, TransformerLayer):
            module.dropout.p = dropout
            module.activation_dropout.p = activation_dropout
        elif isinstance(module, SelfAttention):
            module.dropout = attention_dropout
