"""AST (Gong et al. 2021, arXiv 2104.01778): a convolution-free classifier of spectrograms.

    patches (B, N, P), overlapping -> tokens (B, N, D) -> encoder
    -> mean of CLS and distillation token, or of the patch tokens (B, D)
    -> layer norm, linear -> logits (B, C)

C is the number of classes. The logits are to be followed by a softmax, or by a sigmoid for
multi-label classification.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from mae_ast.core.models.config import AstConfig
from mae_ast.core.models.encoder import Encoder
from mae_ast.core.nn.transformer import init_linear


class AstHead(nn.Module):
    """Classification head: layer norm and linear, (B, D) -> (B, C)."""

    def __init__(self, width: int, num_classes: int, layer_norm_eps: float) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(width, layer_norm_eps)
        self.linear = nn.Linear(width, num_classes)

    def forward(self, pooled: Tensor) -> Tensor:
        """Compute logits: (B, D) -> (B, C)."""
        logits: Tensor = self.linear(self.layer_norm(pooled))
        return logits


class Ast(Encoder):
    """AST: the encoder with overlapping patches, and a classification head."""

    config: AstConfig
    only_for_pretraining: ClassVar[tuple[str, ...]] = ("head",)  # the classes of another task

    def __init__(self, config: AstConfig) -> None:
        super().__init__(config)
        self.head = AstHead(
            config.encoder_embed_dim, config.num_classes, config.head_layer_norm_eps
        )
        self.head.apply(init_linear)

    def forward(self, source: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return the logits (B, C); see :meth:`logits`."""
        return self.logits(source, lengths)

    def logits(self, source: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Classify clips.

        Args:
            source: (B, L) int16 or float waveforms at 16 kHz, or (B, T, 128) log-mel; at least one
                patch long.
            lengths: (B,) int64, valid samples (or frames) of each clip; ``None``: all.

        Returns:
            Logits (B, C) float32.
        """
        pooled = self.pooled(source, lengths)
        with self.compute():
            logits: Tensor = self.head(pooled.to(self.head.linear.weight.dtype))
        return logits.float()
