"""Audio-MAE (Huang et al. 2022, arXiv 2207.06405): a masked autoencoder on log-mel patches.

The encoder sees the visible patches only. A deep and narrow decoder sees the encoder output in its
original positions, with a learned mask token in place of each masked patch, and reconstructs the
masked patches. Its layers use window or global attention.

    visible patches (B, V, P) -> CLS and tokens (B, 1 + V, D) -> encoder (B, 1 + V, D)
    -> with mask tokens (B, N, D_dec), a grid of time x mel -> decoder -> (B, M, D_dec)
    -> head (B, M, P)

CLS has no position on the grid. A decoder with global attention only keeps it, as in MAE; a decoder
with window attention drops it, as the local decoder of the original implementation does.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from mae_ast.core.frontend.masking import MaskIds, scatter_tokens
from mae_ast.core.frontend.rows import PrefixedRow, TokenEnds
from mae_ast.core.models.config import WINDOW, AudioMaeConfig
from mae_ast.core.models.encoder import MaskedEncoder, Prediction
from mae_ast.core.nn.positions import FixedPositions
from mae_ast.core.nn.transformer import INIT_STD, gather_tokens, init_linear
from mae_ast.core.nn.window_attention import GridTransformer

TARGET_EPS = 1e-6  # added to the variance of a patch, as in MAE


class AudioMae(MaskedEncoder):
    """Audio-MAE: encoder, and the decoder of pretraining unless ``decoder_layers`` is 0."""

    config: AudioMaeConfig
    only_for_pretraining: ClassVar[tuple[str, ...]] = (
        *("post_enc_proj", "decoder_mask_emb", "decoder_positions", "decoder"),
        "final_proj_reconstruction",
    )

    def __init__(self, config: AudioMaeConfig) -> None:
        super().__init__(config)
        if config.decoder_layers == 0:
            return
        decoder_width = config.decoder_embed_dim
        self.post_enc_proj = nn.Linear(config.encoder_embed_dim, decoder_width)
        self.decoder_mask_emb = nn.Parameter(torch.randn(decoder_width) * INIT_STD)
        self.decoder_positions = FixedPositions(
            config.positions, config.prefix_tokens, self.patch_shape, decoder_width
        )
        self.decoder = GridTransformer(
            config.shifts,
            WINDOW,
            decoder_width,
            config.decoder_ffn_dim,
            config.decoder_heads,
            config.layer_norm_eps,
        )
        self.final_proj_reconstruction = nn.Linear(decoder_width, self.patch_shape.dim)
        for part in (self.post_enc_proj, self.decoder, self.final_proj_reconstruction):
            part.apply(init_linear)

    def forward(self, source: Tensor, lengths: Tensor | None, mask: MaskIds) -> Prediction:
        """Predict the masked patches from the visible ones; arguments as in the base class.

        The padding that ``input_frames`` adds is neither visible nor predicted.

        Raises:
            ValueError: there is no decoder; or as the base class.
        """
        patches = self.masked_patches(source, lengths, mask)
        if not mask.padded:
            patches = patches[:, : mask.num_patches]
        with self.compute():
            reconstruction = self.predict(patches, mask, mask.masked_ids)
        target, offset, scale = gather_tokens(patches, mask.masked_ids), None, None
        if self.config.normalise_targets:
            variance, offset = torch.var_mean(target, dim=2, keepdim=True)
            scale = (variance + TARGET_EPS).sqrt()
            target = (target - offset) / scale
        return Prediction(reconstruction, None, target, mask.valid, offset, scale, mask.masked_ends)

    def predict(self, patches: Tensor, mask: MaskIds, ids: Tensor | None = None) -> Tensor:
        """Predict patches from the visible ones.

        Args:
            patches: (B, N, P); the masked ones are not used.
            mask: partition into visible and masked patches.
            ids: (B, K) int64, the patches to predict, of a row the masked ones; ``None``: all.

        Returns:
            (B, K, P), or (B, N, P).

        Raises:
            ValueError: there is no decoder.
        """
        if self.config.decoder_layers == 0:
            raise ValueError("decoder_layers=0; predicting patches needs a decoder")
        encoded = self.encode_visible(patches, mask)
        decoded = self.decode(encoded, mask, patches.shape[1], ids)
        predicted: Tensor = self.final_proj_reconstruction(decoded)
        return predicted

    def decode(
        self, encoded: Tensor, mask: MaskIds, num_patches: int, ids: Tensor | None = None
    ) -> Tensor:
        """Decode patches from the encoder output.

        Args:
            encoded: (B, 1 + V, D), CLS and the visible patches; of a row, (1, C + V, D).
            mask: partition into visible and masked patches.
            num_patches: N.
            ids: (B, K) int64, the patches to return, of a row the masked ones; ``None``: all.

        Returns:
            (B, K, D_dec), or (B, N, D_dec).
        """
        num_prefix = self.config.prefix_tokens
        visible = self.post_enc_proj(encoded)
        prefix, visible = visible.tensor_split([visible.shape[1] - mask.visible_ids.shape[1]], 1)
        tokens, padding = scatter_tokens(visible, self.decoder_mask_emb, mask, num_patches)
        grid = (num_patches // self.patch_shape.per_column, self.patch_shape.per_column)
        positions = self.decoder_positions(grid, clips=mask.clips)
        if not self.decoder.is_global:
            x = tokens + positions[:, num_prefix:]
            decoded: Tensor = self.decoder(x, grid, padding, ids)
            return decoded
        if isinstance(padding, TokenEnds):
            row = PrefixedRow(padding.tokens, num_patches, num_prefix)
            x = row.join(prefix, tokens + positions[:, num_prefix:])  # CLS has no position
            ids = None if ids is None else row.tokens[ids.clamp(min=0)]
            out_of_row: Tensor = self.decoder(x, grid, padding._replace(tokens=row.ends), ids)
            return row.split(out_of_row)[1] if ids is None else out_of_row
        if padding is not None:
            padding = torch.cat((padding.new_zeros(len(padding), num_prefix), padding), dim=1)
        x = torch.cat((prefix, tokens), dim=1) + positions
        if ids is not None:
            out: Tensor = self.decoder(x, grid, padding, ids + num_prefix)
            return out
        everything: Tensor = self.decoder(x, grid, padding)
        return everything[:, num_prefix:]
