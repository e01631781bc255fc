"""MAE-AST (Baade et al. 2022, arXiv 2203.16691): a masked autoencoder on log-mel patches.

A deep encoder sees the visible patches only. A shallow decoder sees the encoder output in its
original positions, with a learned mask token in place of each masked patch, and predicts the masked
patches.

    waveform (B, L) -> filterbank (B, T, F) -> normalised (B, T, F) -> patches (B, N, P)
    visible patches (B, V, P) -> tokens (B, V, D) -> encoder (B, V, D)
    -> with mask tokens (B, N, D_dec) -> decoder (B, M, D_dec) -> two heads (B, M, P)

One head reconstructs the masked patches, the other classifies them among all masked patches of the
clip (see :mod:`mae_ast.core.models.losses`).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from mae_ast.core.frontend.fbank import fbank, num_frames_of
from mae_ast.core.frontend.input_norm import InputNorm
from mae_ast.core.frontend.masking import MaskIds, scatter_tokens
from mae_ast.core.frontend.patches import patchify
from mae_ast.core.models.config import MaeAstConfig
from mae_ast.core.models.encoder import Prediction
from mae_ast.core.nn.dropout import Dropout
from mae_ast.core.nn.positions import SinusoidalPositions
from mae_ast.core.nn.precision import compute_in
from mae_ast.core.nn.transformer import Transformer, gather_tokens, init_linear


class MaeAst(nn.Module):
    """MAE-AST: encoder, decoder and the two pretraining heads.

    Args:
        config: configuration of the model.

    Raises:
        ValueError: the configuration is invalid.
    """

    only_for_pretraining: ClassVar[tuple[str, ...]] = (
        *("decoder", "decoder_positions", "decoder_mask_emb", "post_enc_proj"),
        *("final_proj_reconstruction", "final_proj_classification", "dropout_input"),
    )

    def __init__(self, config: MaeAstConfig) -> None:
        super().__init__()
        config.validate()
        self.config = config
        self.patch_shape = config.patch_shape
        self.precision = config.precision
        width, decoder_width = config.encoder_embed_dim, config.decoder_embed_dim
        patch_dim = self.patch_shape.dim

        self.batch_norm = InputNorm(
            config.input_stats == "batch", config.input_mean, config.input_std
        )
        self.post_extract_proj = nn.Linear(patch_dim, width)
        self.dropout_input = Dropout(config.dropout_input)
        self.encoder_positions = SinusoidalPositions(width)
        self.encoder = Transformer(
            config.encoder_layers,
            width,
            config.encoder_ffn_embed_dim,
            config.encoder_attention_heads,
            config.layer_norm_first,
            config.dropout,
            config.attention_dropout,
            config.activation_dropout,
            config.encoder_layerdrop,
        )
        self.post_enc_proj: nn.Module = nn.Identity()
        if width != decoder_width:
            self.post_enc_proj = nn.Linear(width, decoder_width)
        self.decoder_mask_emb = nn.Parameter(torch.rand(decoder_width))
        self.decoder_positions = SinusoidalPositions(decoder_width)
        self.decoder = Transformer(
            config.decoder_layers,
            decoder_width,
            config.decoder_ffn_embed_dim or config.encoder_ffn_embed_dim,
            config.decoder_attention_heads or config.encoder_attention_heads,
            config.layer_norm_first,
            config.dropout,
            config.attention_dropout,
            config.activation_dropout,
            config.decoder_layerdrop,
        )
        self.final_proj_reconstruction = nn.Linear(decoder_width, patch_dim)
        self.final_proj_classification = nn.Linear(decoder_width, patch_dim)
        self.apply(init_linear)

    def forward(
        self,
        source: Tensor,
        lengths: Tensor | None,
        visible_ids: Tensor,
        masked_ids: Tensor,
        padded: bool = False,
    ) -> Prediction:
        """Predict the masked patches from the visible ones.

        Args:
            source: (B, L) int16 or float waveforms at 16 kHz, or (B, T, 128) log-mel.
            lengths: (B,) int64, valid samples (or frames) of each clip; ``None``: all.
            visible_ids, masked_ids, padded: as in :class:`~mae_ast.core.frontend.masking.MaskIds`.
        """
        mask = MaskIds(visible_ids, masked_ids, padded)
        patches = self.patches(source, lengths)
        with compute_in(self.precision, self.post_extract_proj.weight):
            encoded = self.encode_visible(gather_tokens(patches, visible_ids), mask)
            decoded = self.decode(encoded, mask, patches.shape[1])
            reconstruction = self._head(self.final_proj_reconstruction, decoded)
            classification = self._head(self.final_proj_classification, decoded)
        return Prediction(
            reconstruction,
            classification,
            gather_tokens(patches, masked_ids),
            masked_ids >= 0 if padded else None,
        )

    def log_mel(self, waveforms: Tensor) -> Tensor:
        """Compute log-mel: (B, L) -> (B, T, F) float32, not normalised; a valid ``source``."""
        return fbank(waveforms, self.config.window_type)

    def spectrogram(self, source: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return the normalised log-mel (B, T, F) float32 of waveforms or log-mel."""
        with torch.autocast(source.device.type, enabled=False):
            if source.ndim == 2:
                source = self.log_mel(source)
                lengths = None if lengths is None else num_frames_of(lengths)
            normalised: Tensor = self.batch_norm(source, lengths)
            return normalised

    def patches(self, source: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return the normalised patches (B, N, P) float32 of waveforms or log-mel."""
        return patchify(self.spectrogram(source, lengths), self.patch_shape)

    def encode_visible(self, patches: Tensor, mask: MaskIds) -> Tensor:
        """Encode the visible patches: (B, V, P) -> (B, V, D)."""
        ids = mask.visible_ids
        padding_mask = ids < 0 if mask.padded else None
        num_positions = ids.shape[1] + mask.masked_ids.shape[1]
        positions = self.encoder_positions(num_positions)[ids.clamp(min=0)]
        tokens = self.dropout_input(self.embed(patches))
        encoded: Tensor = self.encoder(tokens + positions, padding_mask)
        return encoded

    def embed(self, patches: Tensor) -> Tensor:
        """Project patches to tokens, (B, N, P) -> (B, N, D), without positions."""
        tokens: Tensor = self.post_extract_proj(patches.to(self.post_extract_proj.weight.dtype))
        return tokens

    def decode(self, encoded: Tensor, mask: MaskIds, num_patches: int) -> Tensor:
        """Decode the masked tokens (B, M, D_dec) from the encoder output (B, V, D)."""
        tokens, padding_mask = scatter_tokens(
            self.post_enc_proj(encoded), self.decoder_mask_emb, mask, num_patches
        )
        tokens = tokens + self.decoder_positions(num_patches)
        decoded: Tensor = self.decoder(tokens, padding_mask, ids=mask.masked_ids)
        return decoded

    def hidden_states(self, source: Tensor, lengths: Tensor | None = None) -> list[Tensor]:
        """Return the output of each encoder layer, with all patches visible.

        ``dropout_input`` is used only in pretraining (:meth:`encode_visible`); unlike the other
        dropouts, it is not applied here, even in training mode.

        Args:
            source, lengths: as in :meth:`forward`.

        Returns:
            Per layer (B, N, D), before the final layer norm of a pre-norm encoder. Tokens beyond a
            clip's own patches are meaningless.
        """
        patches = self.patches(source, lengths)
        padding_mask = None
        if lengths is not None:
            num_frames = num_frames_of(lengths) if source.ndim == 2 else lengths
            along_time = num_frames // self.patch_shape.time
            index = torch.arange(patches.shape[1], device=patches.device)
            padding_mask = index >= (along_time * self.patch_shape.per_column)[:, None]
        states: list[Tensor] = []
        with compute_in(self.precision, self.post_extract_proj.weight):
            tokens = self.embed(patches) + self.encoder_positions(patches.shape[1])
            self.encoder(tokens, padding_mask, states)
        return states

    def train_heads(self, reconstruction: bool, classification: bool) -> None:
        """Select the heads to train; the others, whose loss has weight 0, are not computed."""
        self.final_proj_reconstruction.requires_grad_(reconstruction)
        self.final_proj_classification.requires_grad_(classification)

    def _head(self, head: nn.Linear, decoded: Tensor) -> Tensor | None:
        return head(decoded) if head.weight.requires_grad or not self.training else None
