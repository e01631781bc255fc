"""Encoder interface of all systems, and the ViT encoder that SSAST, AST and Audio-MAE share.

Interface: :class:`Encoder` is the protocol that every system implements and that classifiers,
feature extraction and export are written for; :class:`MaskedEncoder` adds masked prediction, which
returns a :class:`Prediction`. The functions in this module work on any encoder.

    waveforms (B, L) -> log-mel (B, T, F) -> patches (B, N, P) -> hidden states (B, N, D) per layer

ViT: :class:`Vit` is a pre-norm transformer with K prefix tokens (CLS, distillation token).

    patches (B, N, P) -> tokens (B, N, D) -> with prefix tokens and positions (B, K + N, D)
    -> encoder (B, K + N, D)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor, nn

from mae_ast.core.frontend.fbank import fbank, fit_frames, num_frames_of
from mae_ast.core.frontend.input_norm import InputNorm
from mae_ast.core.frontend.masking import MaskIds
from mae_ast.core.frontend.patches import PatchShape, patchify
from mae_ast.core.models.config import VitConfig
from mae_ast.core.nn.positions import LearnedPositions
from mae_ast.core.nn.precision import compute_in
from mae_ast.core.nn.transformer import (
    INIT_STD,
    SelfAttention,
    Transformer,
    TransformerLayer,
    gather_tokens,
    init_linear,
)


class Encoder(Protocol):
    """Encoder interface: the attributes and methods that every system provides.

    The configuration has ``encoder_layers``, ``encoder_embed_dim`` and ``input_frames`` (``None``:
    clips of any length, which are neither cropped nor padded).
    """

    only_for_pretraining: ClassVar[tuple[str, ...]]
    config: Any
    patch_shape: PatchShape
    precision: str
    batch_norm: InputNorm
    encoder: Transformer
    training: bool

    def hidden_states(self, source: Tensor, lengths: Tensor | None = None) -> list[Tensor]:
        """Return the output of each layer, (B, N, D), for waveforms (B, L) or log-mel (B, T, F)."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state dict, as ``nn.Module`` does."""

    def train(self, mode: bool = True) -> Any:
        """Set training mode, as ``nn.Module`` does."""

    def eval(self) -> Any:
        """Set evaluation mode, as ``nn.Module`` does."""

    def log_mel(self, waveforms: Tensor) -> Tensor:
        """Compute log-mel: (B, L) -> (B, T, F) float32, not normalised."""


class MaskedEncoder(Encoder, Protocol):
    """Encoder that is pretrained by masking: calling it predicts the masked patches."""

    __call__: Callable[..., Any]

    def patches(self, source: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return the normalised patches (B, N, P) float32 of waveforms or log-mel."""


E = TypeVar("E", bound=Encoder)


def encoder_only(model: E) -> E:
    """Remove pretraining-only modules and disable batch-dependent behaviour, in place.

    Layerdrop and the update of input statistics are switched off, and precision is float32. All
    remaining parameters get a gradient from the last hidden state (with pre-norm layers, after the
    final layer norm).
    """
    for name in model.only_for_pretraining:
        if hasattr(model, name):  # a checkpoint may contain the encoder only
            delattr(model, name)
    model.precision = "float32"
    model.batch_norm.update = False
    model.encoder.layerdrop = 0.0
    return model


def last_hidden_state(model: Encoder, states: list[Tensor]) -> Tensor:
    """Return the encoder output (B, N, D): the last state, after the final norm if pre-norm."""
    stack = model.encoder
    out: Tensor = stack.layer_norm(states[-1].float()) if stack.norm_first else states[-1]
    return out


def num_time_steps(model: Encoder, source: Tensor, lengths: Tensor | None) -> Tensor | None:
    """Return the number of valid time steps of patches of each clip, (B,) int64.

    Args:
        model: an encoder.
        source: (B, L) waveforms, or (B, T, F) log-mel.
        lengths: (B,) int64, valid samples (or frames) of each clip; ``None``: all.

    Returns:
        (B,) int64; ``None``: all time steps, also if the model pads clips to a fixed length and
        attends to all of it.
    """
    if lengths is None or model.config.input_frames is not None:
        return None
    frames = num_frames_of(lengths) if source.ndim == 2 else lengths
    return model.patch_shape.grid(frames)[0]


def mark_weight_decay(model: nn.Module) -> None:
    """Set ``p.no_decay`` for all parameters but the weight matrices of linear layers.

    Biases, layer norms, special tokens and learned positions are thus exempt from weight decay, if
    the optimizer supports ``no_decay``.
    """
    matrices = {id(part.weight) for part in model.modules() if isinstance(part, nn.Linear)}
    for parameter in model.parameters():
        parameter.no_decay = id(parameter) not in matrices  # type: ignore[attr-defined]


def set_dropout(
    model: Encoder,
    dropout: float,
    attention_dropout: float,
    activation_dropout: float,
    layerdrop: float,
) -> None:
    """Set the dropout and layerdrop probabilities of an encoder, e.g. for fine-tuning.

    Raises:
        ValueError: a probability is out of range.
    """
    probabilities = {
        "dropout": dropout,
        "attention_dropout": attention_dropout,
        "activation_dropout": activation_dropout,
        "layerdrop": layerdrop,
    }
    for name, value in probabilities.items():
        if not 0 <= value < 1:
            raise ValueError(f"{name}={value}; must be a probability from 0 to below 1")
    for module in model.encoder.modules():
        if isinstance(module, Transformer):
            module.dropout.p = dropout
            module.layerdrop = layerdrop
        elif isinstance(module, TransformerLayer):
            module.dropout.p = dropout
            module.activation_dropout.p = activation_dropout
        elif isinstance(module, SelfAttention):
            module.dropout = attention_dropout


# Modules and parameters of :class:`Vit`; the rest of a model are heads and decoders.
PARTS = ("batch_norm", "post_extract_proj", "prefix_tokens", "positions", "encoder")


@dataclass(frozen=True)
class Encoded:
    """Output of the encoder after the final layer norm.

    Args:
        prefix: (B, K, D), the prefix tokens.
        patches: (B, N, D), the patch tokens.
        num_steps: (B,) int64, valid time steps of each clip; ``None``: all.
    """

    prefix: Tensor
    patches: Tensor
    num_steps: Tensor | None


class Vit(nn.Module):
    """Pre-norm ViT on patches of a log-mel spectrogram: the encoder of SSAST, AST and Audio-MAE.

    For fine-tuning, it may have other (overlapping) strides than in pretraining.

    Args:
        config: configuration of the encoder.
        positions: module that returns position embeddings for a grid and the time steps of each
            clip; default: learned ones, as in DeiT.

    Raises:
        ValueError: the configuration is invalid.
    """

    only_for_pretraining: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: VitConfig, positions: nn.Module | None = None) -> None:
        super().__init__()
        config.validate()
        self.config = config
        self.patch_shape = config.patch_shape
        self.precision = config.precision
        width = config.encoder_embed_dim

        self.batch_norm = InputNorm(
            config.input_stats == "batch", config.input_mean, config.input_std
        )
        self.post_extract_proj = nn.Linear(self.patch_shape.dim, width)
        self.prefix_tokens = nn.Parameter(torch.empty(1, config.prefix_tokens, width))
        nn.init.trunc_normal_(self.prefix_tokens, std=INIT_STD)
        if positions is None:
            positions = LearnedPositions(config.prefix_tokens, config.position_grid, width)
        self.positions = positions
        self.encoder = Transformer(
            config.encoder_layers,
            width,
            config.encoder_ffn_embed_dim,
            config.encoder_attention_heads,
            norm_first=True,
            dropout=config.dropout,
            attention_dropout=config.attention_dropout,
            activation_dropout=config.activation_dropout,
            layerdrop=config.encoder_layerdrop,
            layer_norm_eps=config.layer_norm_eps,
        )
        self.apply(init_linear)

    def log_mel(self, waveforms: Tensor) -> Tensor:
        """Compute log-mel: (B, L) -> (B, T, F) float32, not normalised; a valid ``source``."""
        return fbank(waveforms, self.config.window_type)

    def spectrogram(self, source: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return normalised log-mel (B, T, F) float32; T = ``input_frames`` if that is set."""
        target = self.config.input_frames
        with torch.autocast(source.device.type, enabled=False):
            if source.ndim == 2:
                source = self.log_mel(source)
                lengths = None if lengths is None else num_frames_of(lengths)
            if target is not None:
                if lengths is None:  # exclude padding from the batch statistics
                    lengths = torch.full((len(source),), source.shape[1], device=source.device)
                source, lengths = fit_frames(source, lengths, target), lengths.clamp(max=target)
            normalised: Tensor = self.batch_norm(source, lengths)
            return normalised

    def patches(self, source: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return the normalised patches (B, N, P) float32 of waveforms or log-mel."""
        return patchify(self.spectrogram(source, lengths), self.patch_shape)

    def embed(self, patches: Tensor) -> Tensor:
        """Project patches to tokens, (B, N, P) -> (B, N, D), without positions."""
        tokens: Tensor = self.post_extract_proj(patches.to(self.post_extract_proj.weight.dtype))
        return tokens

    def encode_tokens(
        self,
        tokens: Tensor,
        num_steps: Tensor | None = None,
        hidden_states: list[Tensor] | None = None,
        ids: Tensor | None = None,
    ) -> Tensor:
        """Prepend prefix tokens, add positions and run the encoder.

        Args:
            tokens: (B, N, D), tokens of the patches.
            num_steps: (B,) int64, valid time steps of each clip; ``None``: all.
            hidden_states: if given, the output (B, K + N, D) of each layer is appended to this
                list.
            ids: (B, M) int64, patches whose tokens are returned; ``None``: all tokens, including
                the prefix.

        Returns:
            (B, K + N, D), or (B, M, D).
        """
        batch, num_patches, _ = tokens.shape
        per_column, num_prefix = self.patch_shape.per_column, self.config.prefix_tokens
        padding_mask = None
        if num_steps is not None:
            index = torch.arange(-num_prefix, num_patches, device=tokens.device)
            padding_mask = index >= (num_steps * per_column)[:, None]
        x = torch.cat((self.prefix_tokens.expand(batch, -1, -1), tokens), dim=1)
        x = x + self.positions((num_patches // per_column, per_column), num_steps)
        ids = None if ids is None else ids + num_prefix
        encoded: Tensor = self.encoder(x, padding_mask, hidden_states, ids)
        return encoded

    def encode_visible(
        self, patches: Tensor, ids: Tensor, padded: bool, num_steps: Tensor | None = None
    ) -> Tensor:
        """Encode the visible patches only.

        Args:
            patches: (B, N, P), all patches.
            ids: (B, V) int64, the visible patches; -1 is padding.
            padded: True if ``ids`` contains padding.
            num_steps: (B,) int64, valid time steps of each clip, for the positions; ``None``: all.

        Returns:
            (B, K + V, D).
        """
        batch, num_patches, _ = patches.shape
        per_column, num_prefix = self.patch_shape.per_column, self.config.prefix_tokens
        positions = self.positions((num_patches // per_column, per_column), num_steps)
        positions = positions.expand(batch, -1, -1)
        tokens = self.embed(gather_tokens(patches, ids)) + gather_tokens(
            positions[:, num_prefix:], ids
        )
        prefix = self.prefix_tokens + positions[:, :num_prefix]
        padding_mask = None
        if padded:
            padding_mask = torch.cat((ids.new_zeros(batch, num_prefix), ids), dim=1) < 0
        encoded: Tensor = self.encoder(torch.cat((prefix, tokens), dim=1), padding_mask)
        return encoded

    def pooled_visible(self, source: Tensor, lengths: Tensor | None, visible_ids: Tensor) -> Tensor:
        """Encode the visible patches only and return the mean of their tokens, (B, D).

        Args:
            source, lengths: as in :meth:`encode`.
            visible_ids: (B, V) int64, the visible patches; -1 is padding.
        """
        num_steps = self._num_steps(source, lengths)
        patches = self.patches(source, lengths)
        with compute_in(self.precision, self.post_extract_proj.weight):
            encoded = self.encode_visible(patches, visible_ids, True, num_steps)
        tokens = encoded[:, self.config.prefix_tokens :].float()
        is_valid = visible_ids >= 0
        total = tokens.where(is_valid.unsqueeze(2), 0.0).sum(1)
        return total / is_valid.sum(1, keepdim=True).clamp(min=1)

    def encode(self, source: Tensor, lengths: Tensor | None = None) -> Encoded:
        """Encode clips with all patches visible.

        Args:
            source: (B, L) int16 or float waveforms at 16 kHz, or (B, T, 128) log-mel.
            lengths: (B,) int64, valid samples (or frames) of each clip; ``None``: all.
        """
        num_steps = self._num_steps(source, lengths)
        patches = self.patches(source, lengths)
        with compute_in(self.precision, self.post_extract_proj.weight):
            encoded = self.encode_tokens(self.embed(patches), num_steps)
        num_prefix = self.config.prefix_tokens
        return Encoded(encoded[:, :num_prefix], encoded[:, num_prefix:], num_steps)

    def pooled(self, source: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return the mean of each clip's valid patch tokens (B, D); arguments as :meth:`encode`."""
        encoded = self.encode(source, lengths)
        tokens = encoded.patches.float()
        if encoded.num_steps is None:
            return tokens.mean(1)
        count = (encoded.num_steps * self.patch_shape.per_column)[:, None]
        is_valid = torch.arange(tokens.shape[1], device=tokens.device) < count
        return tokens.where(is_valid.unsqueeze(2), 0.0).sum(1) / count.clamp(min=1)

    def hidden_states(self, source: Tensor, lengths: Tensor | None = None) -> list[Tensor]:
        """Return the output of each encoder layer, before the final layer norm.

        Args:
            source, lengths: as in :meth:`encode`.

        Returns:
            Per layer (B, N, D), without prefix tokens. Tokens beyond a clip's own patches are
            meaningless.
        """
        states: list[Tensor] = []
        num_steps = self._num_steps(source, lengths)
        patches = self.patches(source, lengths)
        with compute_in(self.precision, self.post_extract_proj.weight):
            self.encode_tokens(self.embed(patches), num_steps, states)
        return [state[:, self.config.prefix_tokens :] for state in states]

    def check_mask(self, mask: MaskIds, num_patches: int) -> None:
        """Check that a mask can be used for pretraining.

        Raises:
            ValueError: patches overlap, or ``input_frames`` crops patches that the mask refers to.
        """
        if self.patch_shape.overlaps:
            raise ValueError(
                "patches overlap, so that visible patches would reveal masked ones; pretraining "
                "needs ast_kernel_stride_* equal to ast_kernel_size_*"
            )
        num_needed = mask.visible_ids.shape[1] + mask.masked_ids.shape[1]
        if self.config.input_frames is not None and not mask.padded and num_needed > num_patches:
            raise ValueError(
                f"input_frames={self.config.input_frames} gives {num_patches} patches, but the "
                f"mask has {num_needed}; crop clips to at most input_frames frames"
            )

    def _num_steps(self, source: Tensor, lengths: Tensor | None) -> Tensor | None:
        """Return the valid time steps of each clip; see :func:`num_time_steps`."""
        if lengths is None or self.config.input_frames is not None:
            return None
        return self.patch_shape.grid(num_frames_of(lengths) if source.ndim == 2 else lengths)[0]


@dataclass(frozen=True)
class Prediction:
    """Prediction of the masked patches in pretraining, with its target.

    Args:
        reconstruction: (B, M, P), output of the reconstruction head; ``None`` if it is not trained.
        classification: (B, M, P), output of the classification head; ``None`` if it is not trained.
        target: (B, M, P) float32, the masked patches of the normalised input, minus ``offset`` and
            divided by ``scale``.
        valid: (B, M) bool, False = padding; ``None``: all valid.
        offset, scale: (B, M, 1) float32, mean and std of each patch; ``None``: 0 and 1.
    """

    reconstruction: Tensor | None
    classification: Tensor | None
    target: Tensor
    valid: Tensor | None
    offset: Tensor | None = None
    scale: Tensor | None = None

    def rebuilt(self) -> Tensor:
        """Return the reconstruction with ``scale`` and ``offset`` undone, (B, M, P) float32."""
        assert self.reconstruction is not None  # in eval mode, it is never None
        patches = self.reconstruction.float()
        if self.scale is not None and self.offset is not None:
            patches = patches * self.scale + self.offset
        return patches
