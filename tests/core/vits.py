"""Small ViT models with random weights, clips with masks, and the published interpolation."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mae_ast.core.frontend.collate import Clip, Collater
from mae_ast.core.frontend.collate_rows import RowCollater
from mae_ast.core.frontend.fbank import num_frames
from mae_ast.core.frontend.masking import pad_mask_ids, random_mask
from mae_ast.core.frontend.rows import RowShape
from mae_ast.core.models.encoder import Encoder, Prediction
from mae_ast.core.models.losses import info_nce_loss, reconstruction_loss
from mae_ast.core.models.registry import build_encoder
from mae_ast.hub.load import read_encoder
from tests.sounds import pcm16, speech_like

M = TypeVar("M", bound=nn.Module)

SMALL: dict[str, Any] = {
    "encoder_layers": 2,
    "encoder_embed_dim": 24,
    "encoder_ffn_embed_dim": 40,
    "encoder_attention_heads": 3,
    "position_frames": 128,
}
FRAME_TOKENS = {
    "ast_kernel_size_chan": 128,
    "ast_kernel_stride_chan": 128,
    "ast_kernel_size_time": 2,
    "ast_kernel_stride_time": 2,
}


def encoder_of(source: str | Path) -> Encoder:
    """Return the encoder that fine-tuning starts from, given a source of ``mae_ast.load``."""
    config, weights = read_encoder(str(source))
    model = build_encoder(config)
    model.load_state_dict({**model.state_dict(), **weights})
    return model.eval()


def with_random_weights(model: M) -> M:
    """Draw random weights, so that norms have an effect and attention is not uniform."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            is_scale = value.ndim == 1 and name.endswith("weight")  # scale of a layer norm
            noise = torch.randn(value.shape, generator=generator)
            value.copy_(1 + 0.2 * noise if is_scale else noise * value.shape[-1] ** -0.5)
    return model


class Clips:
    """Clips with a mask for each, single and as a padded batch.

    Args:
        model: any encoder.
        lengths: samples of each clip.
    """

    def __init__(self, model: Any, *lengths: int) -> None:
        self.waves = [pcm16(speech_like(n, seed)) for seed, n in enumerate(lengths)]
        generator = torch.Generator().manual_seed(1)
        grids = [model.patch_shape.grid(num_frames(n)) for n in lengths]
        self.masks = [random_mask(1, grid, 0.75, generator) for grid in grids]
        self.mask = pad_mask_ids(self.masks)
        self.source = nn.utils.rnn.pad_sequence(self.waves, batch_first=True)
        self.lengths = torch.tensor(lengths) if len(set(lengths)) > 1 else None

    def predict(self, model: Any) -> Prediction:
        out: Prediction = model(self.source, self.lengths, self.mask)
        return out


class Row(Clips):
    """The clips side by side in a row, which has room for two more and for five time steps."""

    def __init__(self, model: Any, *lengths: int) -> None:
        super().__init__(model, *lengths)
        patches = model.patch_shape
        steps = sum(patches.grid(num_frames(n))[0] for n in lengths)
        shape = RowShape(steps + 5, len(lengths) + 2, patches, model.config.random_mask_prob)
        collate = RowCollater(Collater(model.config, "random_mask"), shape)
        batch = collate([Clip.of(row, wave, 1, 1) for row, wave in enumerate(self.waves)])
        self.source, self.lengths, self.mask = batch.source, batch.lengths, batch.mask


def loss_of(prediction: Prediction) -> Tensor:
    """Return the loss summed over masked patches, of the heads that were computed."""
    target, valid, ends = prediction.target, prediction.valid, prediction.ends
    loss = target.new_zeros(())
    if prediction.reconstruction is not None:
        loss = loss + 10 * reconstruction_loss(prediction.reconstruction, target, valid)
    if prediction.classification is not None:
        loss = loss + info_nce_loss(prediction.classification, target, valid, ends).loss
    return loss


def log_mel_like(*shape: int, seed: int = 0) -> Tensor:
    """Draw values like log-mel: far from mean 0 and std 1."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator) * 4.2 - 6.5


def interpolate_as_published(table: Tensor, have: tuple[int, int], want: tuple[int, int]) -> Tensor:
    """Fit mel-first positions (1, N, D) to another grid as published: (1, N', D).

    Grids are (mel, time). A shorter axis is cropped around its centre, a longer one is interpolated
    with torch's bilinear interpolation. (The published crop along mel uses the end index of time.)
    """
    x = table.transpose(1, 2).reshape(1, -1, *have)
    (mel, time), (mel_wanted, time_wanted) = have, want
    if time_wanted < time:
        start = int(time / 2) - int(time_wanted / 2)
        x = x[:, :, :, start : start + time_wanted]
    else:
        x = nn.functional.interpolate(x, size=(mel, time_wanted), mode="bilinear")
    if mel_wanted < mel:
        start = int(mel / 2) - int(mel_wanted / 2)
        x = x[:, :, start : start + mel_wanted]
    else:
        x = nn.functional.interpolate(x, size=(mel_wanted, time_wanted), mode="bilinear")
    return x.reshape(1, -1, mel_wanted * time_wanted).transpose(1, 2)


def mel_first(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Reorder tokens (B, N, D) from time x mel to mel x time."""
    return tokens.unflatten(1, grid).transpose(1, 2).flatten(1, 2)
