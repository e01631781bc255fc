"""SSAST (Gong et al. 2022, arXiv 2110.09784): AST pretrained on masked patches, as BERT on words.

The encoder sees all tokens, with a learned mask token in place of each masked patch. Two heads
predict the masked patches: one reconstructs them, the other classifies them among all masked
patches of the clip.

    patches (B, N, P) -> tokens (B, N, D), masked ones replaced by the mask token -> encoder
    -> masked tokens (B, M, D) -> two heads (B, M, P)
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mae_ast.core.frontend.masking import MaskIds
from mae_ast.core.models.config import SsastConfig
from mae_ast.core.models.encoder import MaskedEncoder, Prediction
from mae_ast.core.nn.transformer import gather_tokens, init_linear


class TwoLayerHead(nn.Module):
    """Prediction head: linear, ReLU, linear, (..., D) -> (..., P)."""

    def __init__(self, width: int, patch_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, width)
        self.fc2 = nn.Linear(width, patch_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Predict patches: (..., D) -> (..., P)."""
        out: Tensor = self.fc2(F.relu(self.fc1(x)))
        return out


class Ssast(MaskedEncoder):
    """SSAST in pretraining: encoder, mask token and the two pretraining heads."""

    config: SsastConfig
    only_for_pretraining: ClassVar[tuple[str, ...]] = (
        *("mask_emb", "final_proj_reconstruction", "final_proj_classification"),
    )

    def __init__(self, config: SsastConfig) -> None:
        super().__init__(config)
        width, patch_dim = config.encoder_embed_dim, self.patch_shape.dim
        self.mask_emb = nn.Parameter(torch.randn(width) * width**-0.5)
        self.final_proj_reconstruction = TwoLayerHead(width, patch_dim)
        self.final_proj_classification = TwoLayerHead(width, patch_dim)
        self.final_proj_reconstruction.apply(init_linear)
        self.final_proj_classification.apply(init_linear)

    def forward(self, source: Tensor, lengths: Tensor | None, mask: MaskIds) -> Prediction:
        """Predict the masked patches from the visible ones; arguments as in the base class.

        With ``input_frames``, the padding beyond a clip's own patches is visible.
        """
        patches = self.masked_patches(source, lengths, mask)
        encoded: Tensor | None = None
        predicted: list[Tensor | None] = []
        with self.compute():
            for head in (self.final_proj_reconstruction, self.final_proj_classification):
                is_computed = self.computes(head)
                if is_computed and (encoded is None or self.config.two_pass):
                    encoded = self.encode_masked(patches, mask)
                predicted.append(head(encoded) if is_computed else None)
        target = gather_tokens(patches, mask.masked_ids)
        return Prediction(predicted[0], predicted[1], target, mask.valid, ends=mask.masked_ends)

    def encode_masked(self, patches: Tensor, mask: MaskIds) -> Tensor:
        """Encode patches (B, N, P), masked ones hidden; return the masked tokens (B, M, D)."""
        tokens, num_steps = self.embed(patches), None
        batch, num_patches, _ = tokens.shape
        ids, slots = mask.masked_ids, num_patches
        if mask.padded:
            # Padding is scattered to an extra slot, which is then removed.
            ids, slots = ids.where(ids >= 0, num_patches), num_patches + 1
            if self.config.input_frames is None and mask.clips is None:
                num_steps = mask.num_own // self.patch_shape.per_column
        hidden = torch.zeros(batch, slots, dtype=torch.bool, device=tokens.device)
        hidden = hidden.scatter(1, ids, True)[:, :num_patches]
        tokens = torch.where(hidden.unsqueeze(2), self.mask_emb.to(tokens.dtype), tokens)
        return self.encode_tokens(tokens, num_steps, mask.masked_ids, mask.clips)
