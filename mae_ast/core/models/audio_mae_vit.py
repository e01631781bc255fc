"""Audio-MAE with the interface of an unofficial implementation: ``loss, pred, mask = model(x)``.

This is a wrapper around :mod:`mae_ast.core.models.audio_mae` for log-mel that is already
normalised. To train, save and load models, use that module and :func:`mae_ast.load`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from mae_ast.core.frontend.fbank import NUM_MEL_BINS
from mae_ast.core.frontend.masking import random_mask
from mae_ast.core.frontend.patches import patchify
from mae_ast.core.models.audio_mae import AudioMae
from mae_ast.core.models.config import AudioMaeConfig
from mae_ast.core.models.losses import reconstruction_loss
from mae_ast.core.nn.transformer import gather_tokens


class AudioMaskedAutoencoderViT(nn.Module):
    """Audio-MAE with a local decoder whose windows are shifted along time in every second layer.

    Args:
        num_mels: number of mel bins; must be 128.
        mel_len: length of a clip in frames; must be a multiple of ``patch_size``.
        in_chans: number of input channels; must be 1.
        patch_size: frames and mel bins of a patch; must divide 128.
        embed_dim, encoder_depth, num_heads: width, layers and attention heads of the encoder.
        decoder_embed_dim, decoder_depth, decoder_num_heads: the same for the decoder.
        mlp_ratio: hidden width of the feed-forward blocks divided by the width.
        norm_layer: callable that returns an ``nn.LayerNorm`` of a given width.

    Raises:
        ValueError: a value is not supported.
    """

    def __init__(
        self,
        num_mels: int = NUM_MEL_BINS,
        mel_len: int = 1024,
        in_chans: int = 1,
        patch_size: int = 16,
        embed_dim: int = 768,
        encoder_depth: int = 12,
        num_heads: int = 12,
        decoder_embed_dim: int = 512,
        decoder_depth: int = 16,
        decoder_num_heads: int = 16,
        mlp_ratio: float = 4,
        norm_layer: Callable[[int], nn.Module] = partial(nn.LayerNorm, eps=1e-6),  # noqa: B008
    ) -> None:
        super().__init__()
        norm = norm_layer(embed_dim)
        if (num_mels, in_chans) != (NUM_MEL_BINS, 1):
            raise ValueError(
                f"num_mels={num_mels}, in_chans={in_chans}; only {NUM_MEL_BINS} mel bins and one "
                "channel are supported"
            )
        if mel_len < 1 or mel_len % patch_size:
            raise ValueError(f"mel_len={mel_len}; must be a multiple of patch_size={patch_size}")
        if not isinstance(norm, nn.LayerNorm):
            raise ValueError(f"norm_layer returns {type(norm).__name__}; must return a LayerNorm")
        self.mel_len = mel_len
        self.model = AudioMae(
            AudioMaeConfig(
                ast_kernel_size_chan=patch_size,
                ast_kernel_size_time=patch_size,
                ast_kernel_stride_chan=patch_size,
                ast_kernel_stride_time=patch_size,
                encoder_layers=encoder_depth,
                encoder_embed_dim=embed_dim,
                encoder_ffn_embed_dim=int(embed_dim * mlp_ratio),
                encoder_attention_heads=num_heads,
                decoder_layers=decoder_depth,
                decoder_embed_dim=decoder_embed_dim,
                decoder_ffn_embed_dim=int(decoder_embed_dim * mlp_ratio),
                decoder_attention_heads=decoder_num_heads,
                layer_norm_eps=norm.eps,
            )
        )

    def forward(
        self,
        audio_mels: Tensor,
        mask_ratio: float = 0.8,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mask random patches and predict them.

        Args:
            audio_mels: (B, 1, mel_len, num_mels) float, normalised.
            mask_ratio: fraction of patches to hide, between 0 and 1.
            generator: random number generator of the mask, on the device of the input; default:
                torch's default generator.

        Returns:
            loss: scalar, mean squared error of the masked patches.
            pred: (B, N, P), prediction of all patches, ordered time step by time step.
            mask: (B, N) float32, 1 where a patch is masked, else 0.

        Raises:
            ValueError: the input has another shape, or the ratio is out of range.
        """
        shape = self.model.patch_shape
        if audio_mels.shape[1:] != (1, self.mel_len, NUM_MEL_BINS):
            raise ValueError(
                f"audio_mels has shape {tuple(audio_mels.shape)}; must be (B, 1, {self.mel_len}, "
                f"{NUM_MEL_BINS})"
            )
        if not 0 < mask_ratio < 1:
            raise ValueError(f"mask_ratio={mask_ratio}; must be between 0 and 1")
        patches = patchify(audio_mels.squeeze(1), shape)
        batch, num_patches, _ = patches.shape
        grid = shape.grid(self.mel_len)
        mask = random_mask(batch, grid, mask_ratio, generator, audio_mels.device)
        predicted = self.model.predict(patches, mask)
        hidden = torch.zeros(batch, num_patches, device=patches.device)
        hidden = hidden.scatter(1, mask.masked_ids, 1.0)
        loss = reconstruction_loss(
            gather_tokens(predicted, mask.masked_ids), gather_tokens(patches, mask.masked_ids)
        )
        return loss / max(1, mask.masked_ids.numel()), predicted, hidden
