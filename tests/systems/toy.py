"""A system in one file: a masked autoencoder with a convolutional patch embedding and EMA targets.

The encoder sees the visible patches only. A layer on the encoder output and mask tokens predicts,
for each masked patch, the output of a teacher that sees all patches. The weights of the teacher are
an exponential moving average (EMA) of the encoder's (as in data2vec, Baevski et al. 2022).

    visible patches (B, V, P) -> conv embedding (B, V, D) -> encoder (B, V, D)
    -> with mask tokens (B, N, D) -> layer -> masked tokens (B, M, D) -> head (B, M, D)
"""

# No postponed annotations here: fairseq reads the types of the fields at run time.
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mae_ast.core.frontend.masking import MaskIds, scatter_tokens
from mae_ast.core.models.config import PretrainingConfig
from mae_ast.core.models.encoder import Encoder, MaskedEncoder, Prediction
from mae_ast.core.models.registry import SYSTEMS, System
from mae_ast.core.nn.transformer import Transformer, gather_tokens, init_linear
from mae_ast.core.settings import setting

CHANNELS = 8


@dataclass
class ToyConfig(PretrainingConfig):
    """Configuration of the toy."""

    positions: ClassVar[str] = "grid"
    prefix_tokens: ClassVar[int] = 0

    ema_decay: float = setting(
        0.99, help="decay of the teacher's moving average of the weights", probability=True
    )


class ConvEmbedding(nn.Module):
    """Two convolutions within each patch: (B, N, P) -> (B, N, D)."""

    def __init__(self, time: int, mel: int, width: int) -> None:
        super().__init__()
        self.size = time, mel
        self.first = nn.Conv2d(1, CHANNELS, 4, stride=4)
        self.second = nn.Conv2d(CHANNELS, width, (time // 4, mel // 4))

    def forward(self, patches: Tensor) -> Tensor:
        """Embed patches: (B, N, P) -> (B, N, D)."""
        images = patches.reshape(-1, 1, *self.size)
        tokens: Tensor = self.second(F.gelu(self.first(images)))
        return tokens.reshape(*patches.shape[:2], -1)


class ToyEncoder(Encoder):
    """Encoder with a convolutional patch embedding."""

    def __init__(self, config: ToyConfig) -> None:
        super().__init__(config)
        shape = self.patch_shape
        self.post_extract_proj = ConvEmbedding(shape.time, shape.mel, config.encoder_embed_dim)


class Toy(ToyEncoder, MaskedEncoder):
    """Encoder, teacher, and the layer that predicts the teacher's output."""

    config: ToyConfig
    only_for_pretraining: ClassVar[tuple[str, ...]] = (
        *("teacher", "mask_emb", "predictor", "final_proj_reconstruction"),
    )

    def __init__(self, config: ToyConfig) -> None:
        super().__init__(config)
        width = config.encoder_embed_dim
        self.teacher = ToyEncoder(config).requires_grad_(False)
        self.teacher.load_state_dict(self.state_dict(), strict=False)
        self.mask_emb = nn.Parameter(torch.randn(width) * width**-0.5)
        self.predictor = Transformer(1, width, 2 * width, config.encoder_attention_heads)
        self.final_proj_reconstruction = nn.Linear(width, width)
        self.predictor.apply(init_linear)
        self.final_proj_reconstruction.apply(init_linear)

    def forward(self, source: Tensor, lengths: Tensor | None, mask: MaskIds) -> Prediction:
        """Predict the teacher's output at the masked patches from the visible ones."""
        patches = self.masked_patches(source, lengths, mask)
        if not mask.padded:
            patches = patches[:, : mask.num_patches]
        if self.training:
            self.update_teacher()
        with self.compute():
            encoded = self.encode_visible(patches, mask)
            tokens, padding = scatter_tokens(encoded, self.mask_emb, mask, patches.shape[1])
            positions = self._positions(patches.shape[1], clips=mask.clips)
            predicted = self.predictor(tokens + positions, padding, ids=mask.masked_ids)
            reconstruction = self.final_proj_reconstruction(predicted)
        return Prediction(reconstruction, None, self.targets(patches, mask), mask.valid)

    @torch.no_grad()
    def targets(self, patches: Tensor, mask: MaskIds) -> Tensor:
        """Return the teacher's output (B, M, D) float32 at the masked patches."""
        num_steps = None
        if mask.padded and mask.clips is None:
            num_steps = mask.num_own // self.patch_shape.per_column
        tokens = self.teacher.embed(patches)
        encoded = self.teacher.encode_tokens(tokens, num_steps, clips=mask.clips)
        return gather_tokens(encoded, mask.masked_ids).float()

    @torch.no_grad()
    def update_teacher(self) -> None:
        """Move the teacher's weights towards the encoder's."""
        own = dict(self.named_parameters())
        for name, value in self.teacher.named_parameters():
            value.lerp_(own[name], 1 - self.config.ema_decay)


SYSTEM = System(ToyConfig, Toy, encoder=ToyEncoder)


def register() -> None:
    """Add the toy to the systems of this process."""
    SYSTEMS["toy"] = SYSTEM
