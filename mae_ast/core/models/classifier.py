"""A classifier on a pretrained encoder: waveforms (B, L) -> logits (B, C).

    hidden states (B, N, D) -> time steps (B, T', columns * D), or the tokens themselves
    -> mean over each clip's own (B, W) -> head (B, C)

Letters beside the house's: C classes, T' time steps (columns of patches), W the head's input width.
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
    num_columns_of,
)
from mae_ast.core.nn.transformer import init_linear

HEADS = ("linear", "mlp")
POOLS = ("time_steps", "tokens", "encoder")
_LAYER = re.compile(r"encoder\.encoder\.layers\.(\d+)\.")


@dataclass(frozen=True)
class HeadConfig:
    """What stands on the encoder.

    Args:
        num_classes: C.
        kind: "linear": layer norm and one linear layer; "mlp": with a hidden layer of width D.
        pool: what is averaged over time: "time_steps", the tokens of a column side by side (where
            a sound lies in mel says what it is), or single "tokens"; "encoder": no mean but what
            the network itself makes of a clip, such as AST's prefix tokens.
        dropout: before the last layer.

    Raises:
        ValueError: a value is none of these.
    """

    num_classes: int
    kind: str = "linear"
    pool: str = "time_steps"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.num_classes < 1:
            raise ValueError(f"{self.num_classes} classes; one at least")
        for name, options in (("kind", HEADS), ("pool", POOLS)):
            if getattr(self, name) not in options:
                raise ValueError(
                    f"head {name} {getattr(self, name)!r}; it is one of {', '.join(options)}"
                )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"head dropout {self.dropout}; a probability from 0 to below 1")


class Classifier(nn.Module):
    """An encoder and a head.

    The input is normalised by the encoder's statistics, which never move: a clip's logits do not
    depend on its batch.

    Args:
        encoder: what :func:`mae_ast.core.models.encoder.encoder_only` leaves of a model.
        width: D, of its hidden states.
        head: what stands on it.
        freeze_encoder: train the head only; the encoder stays in eval mode.

    Raises:
        ValueError: the encoder has no way of its own to pool.
    """

    def __init__(
        self, encoder: Encoder, width: int, head: HeadConfig, freeze_encoder: bool = False
    ) -> None:
        super().__init__()
        if head.pool == "encoder" and not hasattr(encoder, "pooled"):
            raise ValueError(
                f"head pool 'encoder': {type(encoder).__name__} does not pool by itself; "
                "time_steps and tokens are means of its hidden states"
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
        """Logits (B, C) float32.

        Args:
            source: (B, L) int16 or float waveforms at 16 kHz, or (B, T, F) log-mel.
            lengths: (B,) int64, valid samples (or frames) of each clip; ``None``: all.
            hidden: (B, 2, 2) int64, what SpecAugment hides; ``None``: nothing.
            visible_ids: (B, V) int64, the patches that the encoder sees, -1 being padding;
                ``None``: all. See :meth:`check_drop`.
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
        """Refuse an encoder that cannot see a part of the patches only.

        Raises:
            ValueError: it is no ViT, or what is averaged is not single tokens.
        """
        if not hasattr(self.encoder, "pooled_visible") or self.head_config.pool != "tokens":
            raise ValueError(
                "task.drop_time and task.drop_mel leave patches out: that is for encoders of "
                "Audio-MAE, SSAST and AST, and for model.pool=tokens, the mean over what is left; "
                f"this is {type(self.encoder).__name__} with model.pool={self.head_config.pool}"
            )

    def pooled(
        self, source: Tensor, lengths: Tensor | None = None, visible_ids: Tensor | None = None
    ) -> Tensor:
        """(B, W): the mean of the encoder's output over each clip's own time steps."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_encoder):
            if visible_ids is not None:
                part: Tensor = self.encoder.pooled_visible(  # type: ignore[attr-defined]
                    source, lengths, visible_ids
                )
                return part
            if self.head_config.pool == "encoder":
                whole: Tensor = self.encoder.pooled(source, lengths)  # type: ignore[attr-defined]
                return whole.float()
            states = self.encoder.hidden_states(source, lengths)
            steps = self._steps(last_hidden_state(self.encoder, states).float())
        own = num_columns_of(self.encoder, source, lengths)
        if own is None:
            return steps.mean(1)
        if self.head_config.pool == "tokens":
            own = own * self.encoder.patch_shape.per_column
        own = own.clamp(min=1)
        is_own = torch.arange(steps.shape[1], device=steps.device) < own[:, None]
        total = steps.where(is_own[:, :, None], 0.0).sum(1)
        return total / own[:, None]

    def train(self, mode: bool = True) -> Classifier:
        """Torch's, but a frozen encoder stays in eval mode."""
        super().train(mode)
        if self.freeze_encoder:
            self._encoder_module().eval()
        return self

    def scale_learning_rates(self, layer_decay: float, head_scale: float = 1.0) -> None:
        """Mark parameters for an optimizer that honours it, ``p.lr_scale`` and ``p.no_decay``.

        A layer learns ``layer_decay`` times as fast as the one above it, of which the head is the
        uppermost and the patches' projection the lowest (BEiT, Bao et al. 2021, arXiv 2106.08254).
        Weight decay is marked by :func:`mae_ast.core.models.encoder.mark_weight_decay`.

        Args:
            layer_decay: above 0, at most 1, which means all alike.
            head_scale: multiplies the head's rate.

        Raises:
            ValueError: a value cannot be.
        """
        if not 0 < layer_decay <= 1:
            raise ValueError(f"layer_decay={layer_decay}; above 0 and at most 1")
        if not head_scale > 0:
            raise ValueError(f"head_lr_scale={head_scale}; a positive number")
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
        """(B, N, D), with the tokens of a column side by side where that is wanted."""
        if self.head_config.pool == "tokens":
            return tokens
        batch, _, width = tokens.shape
        return tokens.reshape(batch, -1, self.encoder.patch_shape.per_column * width)

    def _encoder_module(self) -> nn.Module:
        assert isinstance(self.encoder, nn.Module)
        return self.encoder


def to_scores(logits: Tensor, independent: bool) -> Tensor:
    """Logits (B, C) to scores from 0 to 1."""
    return logits.sigmoid() if independent else logits.softmax(1)
