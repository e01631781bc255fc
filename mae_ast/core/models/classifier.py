"""Classifier on a pretrained encoder: waveforms (B, L) -> logits (B, C).

    last hidden state (B, N, D) -> time steps (B, T', F' D), or the tokens as they are
    -> mean over each clip's valid time steps or tokens (B, W) -> head (B, C)

C classes, T' time steps of F' patches each, W input width of the head.
"""

from __future__ import annotations

import re
from dataclasses import MISSING, dataclass

import torch
from torch import Tensor, nn

from mae_ast.core.frontend.augment import mask_bands
from mae_ast.core.frontend.fbank import num_frames_of
from mae_ast.core.frontend.masking import MaskIds
from mae_ast.core.frontend.patches import time_steps
from mae_ast.core.models.encoder import Encoder, mark_weight_decay
from mae_ast.core.nn.pooling import masked_mean
from mae_ast.core.nn.transformer import init_linear
from mae_ast.core.settings import check_fields, setting

HEADS = ("linear", "mlp")
POOLS = ("time_steps", "tokens", "encoder")
_LAYER = re.compile(r"encoder\.encoder\.layers\.(\d+)\.")


@dataclass(frozen=True)
class HeadConfig:
    """Configuration of the classification head.

    Raises:
        ValueError: a value is invalid.
    """

    num_classes: int = setting(MISSING, help="C, the number of classes", minimum=1)
    kind: str = setting(
        "linear",
        help="'linear': layer norm and linear; 'mlp': layer norm, linear, GELU and linear, with a "
        "hidden width of D",
        choices=HEADS,
    )
    pool: str = setting(
        "time_steps",
        help="'time_steps': mean over time of the concatenated tokens of a time step, which keeps "
        "the position along mel; 'tokens': mean over all tokens; 'encoder': the tokens that "
        "represent a clip in the system, such as AST's prefix tokens",
        choices=POOLS,
    )
    dropout: float = setting(
        0.0, help="dropout probability before the last layer", probability=True
    )
    layer_norm_eps: float = setting(1e-5, help="epsilon of the layer norm", positive=True)

    def __post_init__(self) -> None:
        check_fields(self, section="head ")


class Classifier(nn.Module):
    """Encoder with a classification head.

    Args:
        encoder: encoder without pretraining modules. It normalises by fixed statistics, so that the
            logits of a clip do not depend on its batch.
        head: configuration of the head.
        freeze_encoder: train the head only; the encoder stays in eval mode.
    """

    def __init__(self, encoder: Encoder, head: HeadConfig, freeze_encoder: bool = False) -> None:
        super().__init__()
        self.encoder = encoder
        self.head_config = head
        self.freeze_encoder = freeze_encoder
        width = encoder.config.encoder_embed_dim
        pooled = width * (encoder.patch_shape.per_column if head.pool == "time_steps" else 1)
        layers: list[nn.Module] = [nn.LayerNorm(pooled, head.layer_norm_eps)]
        if head.kind == "mlp":
            layers += [nn.Linear(pooled, width), nn.GELU()]
            pooled = width
        layers += [nn.Dropout(head.dropout), nn.Linear(pooled, head.num_classes)]
        self.head = nn.Sequential(*layers)
        self.head.apply(init_linear)
        self.encoder.requires_grad_(not freeze_encoder)
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
                all patches. It needs a head that pools tokens.

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

    def pooled(
        self, source: Tensor, lengths: Tensor | None = None, visible_ids: Tensor | None = None
    ) -> Tensor:
        """Return the pooled encoder output (B, W); arguments as in :meth:`forward`."""
        visible = None
        if visible_ids is not None:
            visible = MaskIds(visible_ids, visible_ids[:, :0], padded=True)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_encoder):
            if self.head_config.pool == "encoder":
                return self.encoder.pooled(source, lengths, visible)
            encoded = self.encoder.encode(source, lengths, visible)
            tokens, valid = encoded.patches.float(), encoded.valid
            if self.head_config.pool == "time_steps":
                per_column = self.encoder.patch_shape.per_column
                tokens = time_steps(tokens, per_column)
                valid = None if valid is None else valid[:, ::per_column]
            return masked_mean(tokens, valid)

    def train(self, mode: bool = True) -> Classifier:
        """Set training or evaluation mode; a frozen encoder stays in eval mode."""
        super().train(mode)
        if self.freeze_encoder:
            self.encoder.eval()
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


def to_scores(logits: Tensor, multi_label: bool) -> Tensor:
    """Convert logits (B, C) to scores from 0 to 1: sigmoid if multi-label, else softmax."""
    return logits.sigmoid() if multi_label else logits.softmax(1)
