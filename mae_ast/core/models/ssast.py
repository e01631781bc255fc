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
from mae_ast.core.models.encoder import Prediction, Vit
from mae_ast.core.nn.precision import compute_in
from mae_ast.core.nn.transformer import gather_tokens, init_linear

FINETUNING_STRIDES = {16: 10, 2: 1}  # size of a patch along an axis: its stride in fine-tuning


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


class Ssast(Vit):
    """SSAST in pretraining: encoder, mask token and the two pretraining heads.

    Args:
        config: configuration of the model.

    Raises:
        ValueError: the configuration is invalid.
    """

    config: SsastConfig
    only_for_pretraining: ClassVar[tuple[str, ...]] = (
        *("mask_emb", "final_proj_reconstruction", "final_proj_classification"),
    )

    def __init__(self, config: SsastConfig) -> None:
        super().__init__(config)
        self.two_pass = config.two_pass
        width, patch_dim = config.encoder_embed_dim, self.patch_shape.dim
        self.mask_emb = nn.Parameter(torch.randn(width) * width**-0.5)
        self.final_proj_reconstruction = TwoLayerHead(width, patch_dim)
        self.final_proj_classification = TwoLayerHead(width, patch_dim)
        self.final_proj_reconstruction.apply(init_linear)
        self.final_proj_classification.apply(init_linear)

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
                With ``input_frames``, the padding beyond a clip's own patches is visible.

        Raises:
            ValueError: patches overlap, or ``input_frames`` crops patches that the ids refer to.
        """
        mask = MaskIds(visible_ids, masked_ids, padded)
        patches = self.patches(source, lengths)
        self.check_mask(mask, patches.shape[1])
        with compute_in(self.precision, self.post_extract_proj.weight):
            reconstruction, classification = self._predict(patches, mask)
        return Prediction(
            reconstruction,
            classification,
            gather_tokens(patches, masked_ids),
            masked_ids >= 0 if padded else None,
        )

    def encode_masked(self, patches: Tensor, mask: MaskIds) -> Tensor:
        """Encode patches (B, N, P), masked ones hidden; return the masked tokens (B, M, D)."""
        tokens, num_steps = self.embed(patches), None
        batch, num_patches, _ = tokens.shape
        ids, slots = mask.masked_ids, num_patches
        if mask.padded:
            # Padding is scattered to an extra slot, which is then removed.
            ids, slots = ids.where(ids >= 0, num_patches), num_patches + 1
            if self.config.input_frames is None:
                per_clip = (mask.visible_ids >= 0).sum(1) + (mask.masked_ids >= 0).sum(1)
                num_steps = per_clip // self.patch_shape.per_column
        hidden = torch.zeros(batch, slots, dtype=torch.bool, device=tokens.device)
        hidden = hidden.scatter(1, ids, True)[:, :num_patches]
        tokens = torch.where(hidden.unsqueeze(2), self.mask_emb.to(tokens.dtype), tokens)
        return self.encode_tokens(tokens, num_steps, ids=mask.masked_ids)

    def train_heads(self, reconstruction: bool, classification: bool) -> None:
        """Select the heads to train; the others, whose loss has weight 0, are not computed."""
        self.final_proj_reconstruction.requires_grad_(reconstruction)
        self.final_proj_classification.requires_grad_(classification)

    def _predict(self, patches: Tensor, mask: MaskIds) -> tuple[Tensor | None, Tensor | None]:
        heads = (self.final_proj_reconstruction, self.final_proj_classification)
        active = [head.fc1.weight.requires_grad or not self.training for head in heads]
        encoded: Tensor | None = None
        predicted: list[Tensor | None] = []
        for head, is_active in zip(heads, active, strict=True):
            if is_active and (encoded is None or self.two_pass):
                encoded = self.encode_masked(patches, mask)
            predicted.append(head(encoded) if is_active else None)
        return predicted[0], predicted[1]
