"""What a pretrained model is good for afterwards: an encoder, (B, L) -> hidden states (B, N, D).

Every system of this project offers the same few things, and what stands on top uses no others.
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
    """What is asked of a system: a module with these parts and methods.

    Its configuration has ``encoder_layers``, ``encoder_embed_dim`` and ``input_frames``, which is
    ``None`` where clips of any length are taken as they are.
    """

    only_for_pretraining: ClassVar[tuple[str, ...]]
    config: Any
    patch_shape: PatchShape
    precision: str
    batch_norm: InputNorm
    encoder: Transformer
    training: bool

    def hidden_states(self, source: Tensor, lengths: Tensor | None = None) -> list[Tensor]:
        """Per layer (B, N, D) of waveforms (B, L) or log-mel (B, T, F)."""

    def state_dict(self) -> dict[str, Any]:
        """Of a module."""

    def train(self, mode: bool = True) -> Any:
        """Of a module."""

    def eval(self) -> Any:
        """Of a module."""

    def log_mel(self, waveforms: Tensor) -> Tensor:
        """(B, L) -> (B, T, F) float32, not normalised."""


class MaskedEncoder(Encoder, Protocol):
    """A system in pretraining: it says of patches that a mask hides what they are."""

    __call__: Callable[..., Any]

    def patches(self, source: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Normalised patches (B, N, P) float32 of waveforms or log-mel."""


E = TypeVar("E", bound=Encoder)


def encoder_only(model: E) -> E:
    """Leave of a model what ``hidden_states`` needs, in float32 and independent of the batch.

    Without the rest, no parameter stays without a gradient (but the stack's norm of pre-norm
    layers, where only ``hidden_states`` are used).
    """
    for name in model.only_for_pretraining:
        if hasattr(model, name):  # a file may have held the encoder alone
            delattr(model, name)
    model.precision = "float32"
    model.batch_norm.update = False
    model.encoder.layerdrop = 0.0
    return model


def last_hidden_state(model: Encoder, states: list[Tensor]) -> Tensor:
    """The encoder's output (B, N, D): the last layer's, of pre-norm layers after the final norm."""
    stack = model.encoder
    out: Tensor = stack.layer_norm(states[-1].float()) if stack.norm_first else states[-1]
    return out


def num_columns_of(model: Encoder, source: Tensor, lengths: Tensor | None) -> Tensor | None:
    """(B,) int64: columns of patches (time steps) that are each clip's own; ``None``: all are.

    So they are in a network that fills clips up to a fixed length, and attends to all of it.
    """
    if lengths is None or model.config.input_frames is not None:
        return None
    frames = num_frames_of(lengths) if source.ndim == 2 else lengths
    return model.patch_shape.grid(frames)[0]


def mark_weight_decay(model: nn.Module) -> None:
    """Mark what an optimizer that honours ``p.no_decay`` leaves without weight decay.

    That is all but the matrices of linear layers: biases, norms, tokens, learned positions.
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
    """Give an encoder's layers other regularisation than they were pretrained with.

    Raises:
        ValueError: one is no probability.
    """
    given = {
        "dropout": dropout,
        "attention_dropout": attention_dropout,
        "activation_dropout": activation_dropout,
        "layerdrop": layerdrop,
    }
    for name, value in given.items():
        if not 0 <= value < 1:
            raise ValueError(f"{name}={value}; a probability from 0 to below 1")
    for module in model.encoder.modules():
        if isinstance(module, Transformer):
            module.dropout.p = dropout
            module.layerdrop = layerdrop
        elif isinstance(module, TransformerLayer):
            module.dropout.p = dropout
            module.activation_dropout.p = activation_dropout
        elif isinstance(module, SelfAttention):
            module.dropout = attention_dropout


# What :class:`Vit` holds; whatever else a model has stands on it.
PARTS = ("batch_norm", "post_extract_proj", "prefix_tokens", "positions", "encoder")


@dataclass(frozen=True)
class Encoded:
    """The encoder's output, after its last layer norm.

    Args:
        prefix: (B, K, D).
        patches: (B, N, D).
        columns: (B,) int64, each clip's own patches along time; ``None``: all are.
    """

    prefix: Tensor
    patches: Tensor
    columns: Tensor | None


class Vit(nn.Module):
    """The encoder alone; with other strides than in pretraining, the view for fine-tuning.

    Args:
        config: what it is made of.
        positions: called with a grid and each clip's own columns; default: learned ones, as DeiT
            has them.

    Raises:
        ValueError: the configuration cannot work.
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
        """(B, L) -> (B, T, F) float32, not normalised: what may stand for ``source``."""
        return fbank(waveforms, self.config.window_type)

    def spectrogram(self, source: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Normalised log-mel (B, T, F) float32 of waveforms or log-mel, T = ``input_frames``."""
        target = self.config.input_frames
        with torch.autocast(source.device.type, enabled=False):
            if source.ndim == 2:
                source = self.log_mel(source)
                lengths = None if lengths is None else num_frames_of(lengths)
            if target is not None:
                if lengths is None:  # what is filled up does not count in a batch's statistics
                    lengths = torch.full((len(source),), source.shape[1], device=source.device)
                source, lengths = fit_frames(source, lengths, target), lengths.clamp(max=target)
            normalised: Tensor = self.batch_norm(source, lengths)
            return normalised

    def patches(self, source: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Normalised patches (B, N, P) float32 of waveforms or log-mel."""
        return patchify(self.spectrogram(source, lengths), self.patch_shape)

    def embed(self, patches: Tensor) -> Tensor:
        """Patches (B, N, P) -> tokens (B, N, D), before positions."""
        tokens: Tensor = self.post_extract_proj(patches.to(self.post_extract_proj.weight.dtype))
        return tokens

    def encode_tokens(
        self,
        tokens: Tensor,
        columns: Tensor | None = None,
        hidden_states: list[Tensor] | None = None,
        ids: Tensor | None = None,
    ) -> Tensor:
        """Prefix tokens before, positions added, and all through the encoder.

        Args:
            tokens: (B, N, D) of patches.
            columns: (B,) int64, each clip's own patches along time; ``None``: all are.
            hidden_states: when given, each layer's output (B, K + N, D) is appended to it.
            ids: (B, M) int64, patches whose tokens are wanted; ``None``: all, prefix and all.

        Returns:
            (B, K + N, D), or (B, M, D).
        """
        batch, num_patches, _ = tokens.shape
        per_column, num_prefix = self.patch_shape.per_column, self.config.prefix_tokens
        padding_mask = None
        if columns is not None:
            index = torch.arange(-num_prefix, num_patches, device=tokens.device)
            padding_mask = index >= (columns * per_column)[:, None]
        x = torch.cat((self.prefix_tokens.expand(batch, -1, -1), tokens), dim=1)
        x = x + self.positions((num_patches // per_column, per_column), columns)
        ids = None if ids is None else ids + num_prefix
        encoded: Tensor = self.encoder(x, padding_mask, hidden_states, ids)
        return encoded

    def encode_visible(
        self, patches: Tensor, ids: Tensor, padded: bool, columns: Tensor | None = None
    ) -> Tensor:
        """Some of the patches through the encoder; it does not see the others.

        Args:
            patches: (B, N, P), all.
            ids: (B, V) int64, those to encode; -1 is padding.
            padded: whether there is such padding.
            columns: as in :meth:`encode_tokens`, of the positions.

        Returns:
            (B, K + V, D).
        """
        batch, num_patches, _ = patches.shape
        per_column, num_prefix = self.patch_shape.per_column, self.config.prefix_tokens
        positions = self.positions((num_patches // per_column, per_column), columns)
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
        """(B, D): the mean of some patches' tokens, where the encoder sees those only.

        Args:
            source, lengths: as in :meth:`encode`.
            visible_ids: (B, V) int64; -1 is padding.
        """
        columns = self._columns(source, lengths)
        patches = self.patches(source, lengths)
        with compute_in(self.precision, self.post_extract_proj.weight):
            encoded = self.encode_visible(patches, visible_ids, True, columns)
        tokens = encoded[:, self.config.prefix_tokens :].float()
        is_one = visible_ids >= 0
        total = tokens.where(is_one.unsqueeze(2), 0.0).sum(1)
        return total / is_one.sum(1, keepdim=True).clamp(min=1)

    def encode(self, source: Tensor, lengths: Tensor | None = None) -> Encoded:
        """The encoder's output of clips of which nothing is hidden.

        Args:
            source: (B, L) int16 or float waveforms at 16 kHz, or (B, T, 128) log-mel.
            lengths: (B,) int64, valid samples (or frames) of each clip; ``None``: all.
        """
        columns = self._columns(source, lengths)
        patches = self.patches(source, lengths)
        with compute_in(self.precision, self.post_extract_proj.weight):
            encoded = self.encode_tokens(self.embed(patches), columns)
        num_prefix = self.config.prefix_tokens
        return Encoded(encoded[:, :num_prefix], encoded[:, num_prefix:], columns)

    def pooled(self, source: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(B, D): the mean of each clip's own patch tokens; arguments as in :meth:`encode`."""
        encoded = self.encode(source, lengths)
        tokens = encoded.patches.float()
        if encoded.columns is None:
            return tokens.mean(1)
        own = (encoded.columns * self.patch_shape.per_column)[:, None]
        is_own = torch.arange(tokens.shape[1], device=tokens.device) < own
        return tokens.where(is_own.unsqueeze(2), 0.0).sum(1) / own.clamp(min=1)

    def hidden_states(self, source: Tensor, lengths: Tensor | None = None) -> list[Tensor]:
        """The encoder's layers, as they are, without the stack's last layer norm.

        Args:
            source, lengths: as in :meth:`encode`.

        Returns:
            Per layer (B, N, D), patches only, time first; what lies past a clip's own patches is
            of no meaning.
        """
        states: list[Tensor] = []
        columns = self._columns(source, lengths)
        patches = self.patches(source, lengths)
        with compute_in(self.precision, self.post_extract_proj.weight):
            self.encode_tokens(self.embed(patches), columns, states)
        return [state[:, self.config.prefix_tokens :] for state in states]

    def check_mask(self, mask: MaskIds, num_patches: int) -> None:
        """Refuse what pretraining cannot do.

        Raises:
            ValueError: patches overlap, or ``input_frames`` cuts off patches that ids name.
        """
        if self.patch_shape.overlaps:
            raise ValueError(
                "patches overlap, so that visible ones would show what is hidden; pretraining "
                "wants ast_kernel_stride_* equal to ast_kernel_size_*"
            )
        wanted = mask.visible_ids.shape[1] + mask.masked_ids.shape[1]
        if self.config.input_frames is not None and not mask.padded and wanted > num_patches:
            raise ValueError(
                f"input_frames={self.config.input_frames} leaves {num_patches} patches of clips "
                f"that have {wanted}; crop clips to at most so many frames"
            )

    def _columns(self, source: Tensor, lengths: Tensor | None) -> Tensor | None:
        """Each clip's own patches along time; where padding is attended to, all are own."""
        if lengths is None or self.config.input_frames is not None:
            return None
        return self.patch_shape.grid(num_frames_of(lengths) if source.ndim == 2 else lengths)[0]


@dataclass(frozen=True)
class Prediction:
    """What the decoder says of the masked patches.

    Args:
        reconstruction: (B, M, P), or ``None`` where that head is out of training.
        classification: (B, M, P), likewise.
        target: (B, M, P) float32, the normalised patches themselves, or what is left of them
            once ``offset`` is subtracted and the rest divided by ``scale``.
        valid: (B, M) bool, False = padding; ``None``: all valid.
        offset, scale: (B, M, 1) float32, of each patch; ``None``: 0 and 1.
    """

    reconstruction: Tensor | None
    classification: Tensor | None
    target: Tensor
    valid: Tensor | None
    offset: Tensor | None = None
    scale: Tensor | None = None

    def rebuilt(self) -> Tensor:
        """The reconstruction as patches, (B, M, P) float32."""
        assert self.reconstruction is not None  # in eval mode, it never is
        patches = self.reconstruction.float()
        if self.scale is not None and self.offset is not None:
            patches = patches * self.scale + self.offset
        return patches
