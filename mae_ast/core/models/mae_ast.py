"""MAE-AST (Baade et al. 2022, arXiv 2203.16691): a masked autoencoder on log-mel patches.

A deep encoder sees the visible patches only. A shallow decoder sees the encoder output in its
original positions, with a learned mask token in place of each masked patch, and predicts the masked
patches.

    visible patches (B, V, P) -> tokens (B, V, D) -> encoder (B, V, D)
    -> with mask tokens (B, N, D_dec) -> decoder (B, M, D_dec) -> two heads (B, M, P)

One head reconstructs the masked patches, the other classifies them among all masked patches of the
clip (see :mod:`mae_ast.core.models.losses`).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from mae_ast.core.frontend.masking import MaskIds, scatter_tokens
from mae_ast.core.models.config import MaeAstConfig
from mae_ast.core.models.encoder import MaskedEncoder, Prediction
from mae_ast.core.nn.positions import FixedPositions
from mae_ast.core.nn.transformer import Transformer, gather_tokens, init_linear


class MaeAst(MaskedEncoder):
    """MAE-AST: encoder, decoder and the two pretraining heads."""

    config: MaeAstConfig
    only_for_pretraining: ClassVar[tuple[str, ...]] = (
        *("decoder", "decoder_positions", "decoder_mask_emb", "post_enc_proj"),
        *("final_proj_reconstruction", "final_proj_classification"),
    )

    def __init__(self, config: MaeAstConfig) -> None:
        super().__init__(config, init=False)
        width, decoder_width = config.encoder_embed_dim, config.decoder_embed_dim
        self.post_enc_proj: nn.Module = nn.Identity()
        if width != decoder_width:
            self.post_enc_proj = nn.Linear(width, decoder_width)
        self.decoder_mask_emb = nn.Parameter(torch.rand(decoder_width))
        self.decoder_positions = FixedPositions(
            config.positions, 0, self.patch_shape, decoder_width
        )
        self.decoder = Transformer(
            config.decoder_layers,
            decoder_width,
            config.decoder_ffn_dim,
            config.decoder_heads,
            config.layer_norm_first,
            config.dropout,
            config.attention_dropout,
            config.activation_dropout,
            config.decoder_layerdrop,
        )
        self.final_proj_reconstruction = nn.Linear(decoder_width, self.patch_shape.dim)
        self.final_proj_classification = nn.Linear(decoder_width, self.patch_shape.dim)
        self.apply(init_linear)

    def forward(self, source: Tensor, lengths: Tensor | None, mask: MaskIds) -> Prediction:
        """Predict the masked patches from the visible ones; arguments as in the base class.

        Padding to ``input_frames`` is neither visible nor predicted.
        """
        patches = self.masked_patches(source, lengths, mask)
        if not mask.padded:
            patches = patches[:, : mask.num_patches]
        with self.compute():
            encoded = self.encode_visible(patches, mask)
            decoded = self.decode(encoded, mask, patches.shape[1])
            reconstruction, classification = (
                head(decoded) if self.computes(head) else None
                for head in (self.final_proj_reconstruction, self.final_proj_classification)
            )
        target = gather_tokens(patches, mask.masked_ids)
        return Prediction(reconstruction, classification, target, mask.valid, ends=mask.masked_ends)

    def decode(self, encoded: Tensor, mask: MaskIds, num_patches: int) -> Tensor:
        """Decode the masked tokens (B, M, D_dec) from the encoder output (B, V, D)."""
        tokens, padding = scatter_tokens(
            self.post_enc_proj(encoded), self.decoder_mask_emb, mask, num_patches
        )
        per_column = self.patch_shape.per_column
        grid = num_patches // per_column, per_column
        positions = self.decoder_positions(grid, clips=mask.clips)
        decoded: Tensor = self.decoder(tokens + positions, padding, ids=mask.masked_ids)
        return decoded
