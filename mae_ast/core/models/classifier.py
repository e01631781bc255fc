"""Classifier on a pretrained encoder: waveforms (B, L) -> logits (B, C).

    last hidden state (B, N, D) -> time steps (B, T', F' D), or the tokens as they are
    -> mean over each clip's valid time steps or tokens (B, W) -> head (B, C)

C classes, T' time steps of F' patches each, W input width of the head.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mae_ast.core.frontend.augment import mask_bands
from mae_ast.core.frontend.fbank import num_frames_of
from mae_ast.core.models.encoder import (
    Encoder,
    last_hidden_state,
    mark_weight_decay,
    num_time_steps,
)
from mae_ast.core.nn.transformer import init_linear

HEADS = ("linear", "mlp")
POOLS = ("time_steps", "tokens", "encoder")
_LAYER = re.compile(r"encoder\.encoder\.layers\.(\d+)\.")


@dataclass(frozen=True)
class HeadConfig:
    """Configuration of the classification head.

    Args:
        num_classes: C.
        kind: "linear": layer norm and linear; "mlp": layer norm, linear, GELU and linear, with a
            hidden width of D.
        pool: "time_steps": mean over time of the concatenated tokens of a time step, which keeps
            the position along mel; "tokens": mean over all tokens; "encoder": the encoder's own
            pooling, such as AST's prefix tokens.
        dropout: dropout probability before the last layer.

    Raises:
        ValueError: a value is invalid.
    """

    num_classes: int
    kind: str = "linear"
    pool: str = "time_steps"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.num_classes < 1:
            raise ValueError(f"num_classes={self.num_classes}; must be at least 1")
        for name, options in (("kind", HEADS), ("pool", POOLS)):
            if getattr(self, name) not in options:
                raise ValueError(
                    f"head {name} {getattr(self, name)!r}; must be one of {', '.join(options)}"
                )
        if not 0 <= self.dropout < 1:
            raise ValueError(
                f"head dropout {self.dropout}; must be a probability from 0 to below 1"
            )


class Classifier(nn.Module):
    """Encoder with a classification head.

    The input is normalised by the fixed statistics of the encoder, so that the logits of a clip do
    not depend on its batch.

    Args:
        encoder: an encoder, as returned by :func:`mae_ast.core.models.encoder.encoder_only`.
        width: D, the width of its hidden states.
        head: configuration of the head.
        freeze_encoder: train the head only; the encoder stays in eval mode.

    Raises:
        ValueError: ``head.pool`` is "encoder", but the encoder has no pooling of its own.
    """

    def __init__(
        self, encoder: Encoder, width: int, head: HeadConfig, freeze_encoder: bool = False
    ) -> None:
        super().__init__()
        if head.pool == "encoder" and not hasattr(encoder, "pooled"):
            raise ValueError(
                f"head pool 'encoder' is not supported by {type(encoder).__name__}, which has no "
                "pooling of its own; use time_steps or tokens"
            )
        self.encoder = encoder
        self.head_config = head
        self.freeze_encoder = freeze_encoder
        pooled = width * (encoder.patch_shape.per_column if head.pool == "time_steps" else 1)
        layers: list[nn.Module] = [nn.LayerNorm(pooled)]
        if head.kind == "mlp":
            layers += [nn.Linear(pooled, width), nn.GELU()]
            pooled = width
        layers += [nn.Dropout(head.dropout), nn.Linear(pooled, head.num_classes)]
        self.head = nn.Sequential(*layers)
        self.head.apply(init_linear)
        self._encoder_module().requires_grad_(not freeze_encoder)
        self.train(self.training)

    def forward(
        self,
        source: Tensor,
        lengths: Tensor | None = None,
        hidden: Tensor | None = None,
        visible_ids: Tensor | None = None,
    ) -> Tensor:
        """Classify clips.

        Args:
            source: (B, L) int16 or float waveforms at 16 kHz, or (B, T, F) log-mel.
            lengths: (B,) int64, valid samples (or frames) of each clip; ``None``: all.
            hidden: (B, 2, 2) int64, SpecAugment bands to mask (see
                :func:`~mae_ast.core.frontend.augment.mask_bands`); ``None``: no masking.
            visible_ids: (B, V) int64, the patches that the encoder sees; -1 is padding. ``None``:
                all patches. See :meth:`check_drop`.

        Returns:
            Logits (B, C) float32.
        """
        if hidden is not None:
            if source.ndim == 2:
                lengths = None if lengths is None else num_frames_of(lengths)
                source = self.encoder.log_mel(source)
            source = mask_bands(source, hidden, self.encoder.batch_norm.running_mean)
        pooled = self.pooled(source, lengths, visible_ids)
        logits: Tensor = self.head(pooled.to(next(self.head.parameters()).dtype))
        return logits.float()

    def check_drop(self) -> None:
        """Check that this model supports structured patch dropout.

        Raises:
            ValueError: the encoder is not a ViT, or ``pool`` is not "tokens".
        """
        if not hasattr(self.encoder, "pooled_visible") or self.head_config.pool != "tokens":
            raise ValueError(
                "task.drop_time and task.drop_mel drop patches, which needs an Audio-MAE, SSAST or "
                f"AST encoder and model.pool=tokens; this is {type(self.encoder).__name__} "
                f"with model.pool={self.head_config.pool}"
            )

    def pooled(
        self, source: Tensor, lengths: Tensor | None = None, visible_ids: Tensor | None = None
    ) -> Tensor:
        """Return the pooled encoder output (B, W); arguments as in :meth:`forward`."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_encoder):
            if visible_ids is not None:
                visible: Tensor = self.encoder.pooled_visible(  # type: ignore[attr-defined]
                    source, lengths, visible_ids
                )
                return visible
            if self.head_config.pool == "encoder":
                whole: Tensor = self.encoder.pooled(source, lengths)  # type: ignore[attr-defined]
                return whole.float()
            states = self.encoder.hidden_states(source, lengths)
            steps = self._steps(last_hidden_state(self.encoder, states).float())
        count = num_time_steps(self.encoder, source, lengths)
        if count is None:
            return steps.mean(1)
        if self.head_config.pool == "tokens":
            count = count * self.encoder.patch_shape.per_column
        count = count.clamp(min=1)
        is_valid = torch.arange(steps.shape[1], device=steps.device) < count[:, None]
        total = steps.where(is_valid[:, :, None], 0.0).sum(1)
        return total / count[:, None]

    def train(self, mode: bool = True) -> Classifier:
        """Set training or evaluation mode; a frozen encoder stays in eval mode."""
        super().train(mode)
        if self.freeze_encoder:
            self._encoder_module().eval()
        return self

    def scale_learning_rates(self, layer_decay: float, head_scale: float = 1.0) -> None:
        """Set ``p.lr_scale`` for layer-wise learning rate decay, and ``p.no_decay``.

        The learning rate of each layer is ``layer_decay`` times that of the layer above it, from
        the head down to the patch projection (BEiT, Bao et al. 2021, arXiv 2106.08254). The
        optimizer must support both attributes. ``p.no_decay`` is set as in
        :func:`mae_ast.core.models.encoder.mark_weight_decay`.

        Args:
            layer_decay: above 0 and at most 1; 1: the same learning rate for all layers.
            head_scale: factor of the head's learning rate.

        Raises:
            ValueError: a value is out of range.
        """
        if not 0 < layer_decay <= 1:
            raise ValueError(f"layer_decay={layer_decay}; must be above 0 and at most 1")
        if not head_scale > 0:
            raise ValueError(f"head_lr_scale={head_scale}; must be positive")
        mark_weight_decay(self)
        stack = self.encoder.encoder
        depth = len(stack.layers)
        for name, parameter in self.named_parameters():
            layer = _LAYER.match(name)
            if name.startswith("head."):
                scale = head_scale
            elif layer is not None:
                scale = layer_decay ** (depth - int(layer[1]))
            elif stack.norm_first and name.startswith("encoder.encoder.layer_norm."):
                scale = 1.0
            else:
                scale = layer_decay ** (depth + 1)
            parameter.lr_scale = scale  # type: ignore[attr-defined]

    def _steps(self, tokens: Tensor) -> Tensor:
        """Concatenate the tokens of each time step if pooled so: (B, N, D) -> (B, T', F' D)."""
        if self.head_config.pool == "tokens":
            return tokens
        batch, _, width = tokens.shape
        return tokens.reshape(batch, -1, self.encoder.patch_shape.per_column * width)

    def _encoder_module(self) -> nn.Module:
        assert isinstance(self.encoder, nn.Module)
        return self.encoder


def to_scores(logits: Tensor, multi_label: bool) -> Tensor:
    """Convert logits (B, C) to scores from 0 to 1: sigmoid if multi-label, else softmax."""
    return logits.sigmoid() if multi_label else logits.softmax(1)
