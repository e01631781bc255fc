"""Encoder of all systems: a transformer on patches of a log-mel spectrogram.

    waveforms (B, L) -> log-mel (B, T, F) -> normalised (B, T, F) -> patches (B, N, P)
    -> tokens (B, N, D) -> with prefix tokens and positions (B, K + N, D) -> encoder (B, K + N, D)

K prefix tokens: none in MAE-AST, CLS in Audio-MAE, CLS and a distillation token in SSAST and AST.
:class:`Encoder` is complete by itself: with the configuration of any system it is that system's
encoder without pretraining modules. :class:`MaskedEncoder` adds masked prediction.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn

from mae_ast.core.frontend.fbank import fbank, fit_frames, num_frames_of
from mae_ast.core.frontend.input_norm import InputNorm
from mae_ast.core.frontend.masking import MaskIds
from mae_ast.core.frontend.patches import patchify
from mae_ast.core.frontend.rows import PrefixedRow, RowClips, TokenEnds, frames_of_row
from mae_ast.core.models.config import EncoderConfig, PretrainingConfig
from mae_ast.core.nn.dropout import Dropout
from mae_ast.core.nn.pooling import masked_mean
from mae_ast.core.nn.positions import FixedPositions, LearnedPositions
from mae_ast.core.nn.precision import compute_in
from mae_ast.core.nn.transformer import INIT_STD, Transformer, gather_tokens, init_linear

# Modules and parameters of an encoder; the rest of a model are heads and decoders.
PARTS = ("batch_norm", "post_extract_proj", "prefix_tokens", "positions", "encoder")


@dataclass(frozen=True)
class Encoded:
    """Output of the encoder after the final layer norm.

    Args:
        prefix: (B, K, D), the prefix tokens.
        patches: (B, N, D), the patch tokens.
        valid: (B, N) bool, the clips' own patches; ``None``: all.
    """

    prefix: Tensor
    patches: Tensor
    valid: Tensor | None


class Encoder(nn.Module):
    """Transformer encoder on patches of a log-mel spectrogram.

    Args:
        config: configuration of any system.
        init: initialise the linear layers. A subclass with more of them may do so itself.
    """

    only_for_pretraining: ClassVar[tuple[str, ...]] = ()
    config: EncoderConfig

    def __init__(self, config: EncoderConfig, init: bool = True) -> None:
        super().__init__()
        self.config = config
        self.patch_shape = config.patch_shape
        self.precision = config.precision
        width, num_prefix = config.encoder_embed_dim, config.prefix_tokens
        self.batch_norm = InputNorm(
            config.input_stats == "batch", config.input_mean, config.input_std
        )
        self.post_extract_proj: nn.Module = nn.Linear(self.patch_shape.dim, width)
        self.dropout_input = Dropout(config.dropout_input)
        if num_prefix:
            self.prefix_tokens = nn.Parameter(torch.empty(1, num_prefix, width))
            nn.init.trunc_normal_(self.prefix_tokens, std=INIT_STD)
        self.positions: nn.Module = (
            LearnedPositions(num_prefix, config.position_grid, width)
            if config.positions == "learned"
            else FixedPositions(config.positions, num_prefix, self.patch_shape, width)
        )
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
            config.layer_norm_eps,
        )
        if init:
            self.apply(init_linear)

    def log_mel(self, waveforms: Tensor) -> Tensor:
        """Compute log-mel: (B, L) -> (B, T, F) float32, not normalised; a valid ``source``."""
        return fbank(waveforms, self.config.window_type)

    def spectrogram(
        self, source: Tensor, lengths: Tensor | None = None, clips: RowClips | None = None
    ) -> Tensor:
        """Return normalised log-mel (B, T, F) float32; T = ``input_frames`` if that is set.

        Of a row, with its ``clips``, ``lengths`` is the number (1,) of its valid frames.
        """
        target = self.config.input_frames
        with torch.autocast(source.device.type, enabled=False):
            if source.ndim == 2:
                source = self.log_mel(source)
                if clips is not None:
                    source = source[:, frames_of_row(clips, self.patch_shape, source.shape[1])]
                elif lengths is not None:
                    lengths = num_frames_of(lengths)
            if target is not None:
                if lengths is None:  # exclude padding from the batch statistics
                    lengths = torch.full((source.shape[0],), source.shape[1], device=source.device)
                source, lengths = fit_frames(source, lengths, target), lengths.clamp(max=target)
            normalised: Tensor = self.batch_norm(source, lengths)
            return normalised

    def patches(
        self, source: Tensor, lengths: Tensor | None = None, clips: RowClips | None = None
    ) -> Tensor:
        """Return the normalised patches (B, N, P) float32; see :meth:`spectrogram`."""
        return patchify(self.spectrogram(source, lengths, clips), self.patch_shape)

    def num_steps(self, source: Tensor, lengths: Tensor | None) -> Tensor | None:
        """Return the valid time steps of each clip, (B,) int64.

        ``None``: all, also if clips are brought to ``input_frames`` and attended to as a whole.
        """
        if lengths is None or self.config.input_frames is not None:
            return None
        return self.patch_shape.grid(num_frames_of(lengths) if source.ndim == 2 else lengths)[0]

    def embed(self, patches: Tensor) -> Tensor:
        """Project patches to tokens, (B, N, P) -> (B, N, D), without positions."""
        tokens: Tensor = self.post_extract_proj(patches.to(self.encoder.layer_norm.weight.dtype))
        return tokens

    def compute(self) -> AbstractContextManager[object]:
        """Return the context in which tokens are computed, see ``precision``."""
        return compute_in(self.precision, self.encoder.layer_norm.weight)

    def encode_tokens(
        self,
        tokens: Tensor,
        num_steps: Tensor | None = None,
        ids: Tensor | None = None,
        clips: RowClips | None = None,
    ) -> Tensor:
        """Run the transformer on the tokens of all patches.

        Args:
            tokens: (B, N, D), tokens of the patches.
            num_steps: (B,) int64, valid time steps of each clip; ``None``: all.
            ids: (B, M) int64, patches whose tokens are returned; ``None``: all tokens, including
                the prefix.
            clips: clips of a row, whose masked patches ``ids`` are; ``None``: no row.

        Returns:
            (B, K + N, D), or (B, M, D); of a row, (1, C K + N, D), or (1, M, D).
        """
        if clips is not None:
            ends = TokenEnds(clips.ends, None if ids is None else clips.masked_ends)
            positions = self._positions(tokens.shape[1], clips=clips)
            return self._encode_row(tokens, positions, ends, ids)
        ids = None if ids is None else ids + self.config.prefix_tokens
        encoded: Tensor = self.encoder(*self._all_inputs(tokens, num_steps), ids)
        return encoded

    def encode_visible(
        self, patches: Tensor, mask: MaskIds, num_steps: Tensor | None = None
    ) -> Tensor:
        """Run the transformer on the visible patches only.

        Args:
            patches: (B, N, P), all patches.
            mask: its visible patches are encoded.
            num_steps: (B,) int64, valid time steps of each clip, which learned positions are
                fitted to; ``None``: all.

        Returns:
            (B, K + V, D); of a row, (1, C K + V, D), the prefix tokens of all clips in front.
        """
        num_prefix, ids = self.config.prefix_tokens, mask.visible_ids
        positions = self._positions(patches.shape[1], num_steps, mask.clips)
        positions = positions.expand(len(patches), -1, -1)
        own = gather_tokens(positions[:, num_prefix:], ids)
        positions = torch.cat((positions[:, :num_prefix], own), dim=1) if num_prefix else own
        tokens = self.dropout_input(self.embed(gather_tokens(patches, ids)))
        if mask.clips is not None:
            return self._encode_row(tokens, positions, TokenEnds(mask.clips.visible_ends))
        padding = ids < 0 if mask.padded else None
        encoded: Tensor = self.encoder(*self._inputs(tokens, positions, padding))
        return encoded

    def encode(
        self, source: Tensor, lengths: Tensor | None = None, visible: MaskIds | None = None
    ) -> Encoded:
        """Encode clips.

        Args:
            source: (B, L) int16 or float waveforms at 16 kHz, or (B, T, 128) log-mel.
            lengths: (B,) int64, valid samples (or frames) of each clip; ``None``: all.
            visible: only the visible patches of this mask are encoded; ``None``: all patches.
        """
        num_steps = self.num_steps(source, lengths)
        patches = self.patches(source, lengths)
        with self.compute():
            if visible is None:
                encoded = self.encode_tokens(self.embed(patches), num_steps)
                valid = self._valid(patches.shape[1], num_steps)
            else:
                encoded = self.encode_visible(patches, visible, num_steps)
                valid = visible.visible_ids >= 0 if visible.padded else None
        num_prefix = self.config.prefix_tokens
        return Encoded(encoded[:, :num_prefix], encoded[:, num_prefix:], valid)

    def pooled(
        self, source: Tensor, lengths: Tensor | None = None, visible: MaskIds | None = None
    ) -> Tensor:
        """Return the mean (B, D) float32 of the tokens that represent a clip in this system.

        These are the valid patch tokens, or AST's prefix tokens. Arguments as :meth:`encode`.
        """
        encoded = self.encode(source, lengths, visible)
        if self.config.pool == "prefix":
            return encoded.prefix.float().mean(1)
        return masked_mean(encoded.patches.float(), encoded.valid)

    def hidden_states(
        self, source: Tensor, lengths: Tensor | None = None, num_layers: int | None = None
    ) -> list[Tensor]:
        """Return the output of each encoder layer, before the final layer norm.

        Args:
            source, lengths: as in :meth:`encode`.
            num_layers: number of layers to compute, from the first one; ``None``: all.

        Returns:
            Per layer (B, N, D), without prefix tokens. Tokens beyond a clip's own patches are
            meaningless.
        """
        num_steps = self.num_steps(source, lengths)
        patches = self.patches(source, lengths)
        with self.compute():
            inputs = self._all_inputs(self.embed(patches), num_steps)
            states = list(islice(self.encoder.layer_outputs(*inputs), num_layers))
        return [state[:, self.config.prefix_tokens :] for state in states]

    def last_hidden_state(self, states: list[Tensor]) -> Tensor:
        """Return the encoder output (B, N, D): the last state, after the final norm if pre-norm."""
        stack = self.encoder
        out: Tensor = stack.layer_norm(states[-1].float()) if stack.norm_first else states[-1]
        return out

    def _positions(
        self, num_patches: int, num_steps: Tensor | None = None, clips: RowClips | None = None
    ) -> Tensor:
        grid = num_patches // self.patch_shape.per_column, self.patch_shape.per_column
        row = {} if clips is None else {"clips": clips}  # exported positions have no rows
        positions: Tensor = self.positions(grid, num_steps, **row)
        return positions

    def _encode_row(
        self, tokens: Tensor, positions: Tensor, ends: TokenEnds, ids: Tensor | None = None
    ) -> Tensor:
        """Run the transformer on a row of tokens (1, S, D) with positions (1, K + S, D).

        Returns:
            (1, C K + S, D), the prefix tokens of all clips in front; or (1, M, D) with ``ids``.
        """
        num_prefix, num_clips = self.config.prefix_tokens, len(ends.tokens) - 1
        if not num_prefix:
            own: Tensor = self.encoder(tokens + positions, ends, ids)
            return own
        prefix = (self.prefix_tokens + positions[:, :num_prefix]).repeat(1, num_clips, 1)
        row = PrefixedRow(ends.tokens, tokens.shape[1], num_prefix)
        x = row.join(prefix.to(tokens.dtype), tokens + positions[:, num_prefix:])
        ends = ends._replace(tokens=row.ends)
        if ids is not None:
            selected: Tensor = self.encoder(x, ends, row.tokens[ids.clamp(min=0)])
            return selected
        return torch.cat(row.split(self.encoder(x, ends)), dim=1)

    def _valid(self, num_patches: int, num_steps: Tensor | None) -> Tensor | None:
        """Return the patches (B, N) bool within the valid time steps; ``None``: all."""
        if num_steps is None:
            return None
        index = torch.arange(num_patches, device=num_steps.device)
        return index < (num_steps * self.patch_shape.per_column)[:, None]

    def _all_inputs(self, tokens: Tensor, num_steps: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the transformer's inputs, see :meth:`_inputs`, for the tokens of all patches."""
        valid = self._valid(tokens.shape[1], num_steps)
        positions = self._positions(tokens.shape[1], num_steps)
        return self._inputs(tokens, positions, None if valid is None else ~valid)

    def _inputs(
        self, tokens: Tensor, positions: Tensor, padding_mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Add the prefix and positions (1 or B, K + N, D) to tokens (B, N, D).

        Returns:
            (B, K + N, D), and the padding mask (B, K + N) or ``None``.
        """
        num_prefix = self.config.prefix_tokens
        if num_prefix:
            tokens = torch.cat((self.prefix_tokens.expand(tokens.shape[0], -1, -1), tokens), dim=1)
            if padding_mask is not None:
                shown = padding_mask.new_zeros(len(tokens), num_prefix)
                padding_mask = torch.cat((shown, padding_mask), dim=1)
        return tokens + positions, padding_mask


@dataclass(frozen=True)
class Prediction:
    """Prediction of the masked patches in pretraining, with its target.

    Args:
        reconstruction: (B, M, P), output of the reconstruction head; ``None`` if it is not trained.
        classification: (B, M, P), output of the classification head; ``None`` if it is not trained.
        target: (B, M, P) float32, the masked patches of the normalised input, minus ``offset`` and
            divided by ``scale``; or other targets, of another size than a patch.
        valid: (B, M) bool, False = padding; ``None``: all valid.
        offset, scale: (B, M, 1) float32, mean and std of each patch; ``None``: 0 and 1.
        ends: (C + 1,) int64, ends of the masked patches of each clip of a row; ``None``: no row.
    """

    reconstruction: Tensor | None
    classification: Tensor | None
    target: Tensor
    valid: Tensor | None
    offset: Tensor | None = None
    scale: Tensor | None = None
    ends: Tensor | None = None

    def rebuilt(self) -> Tensor:
        """Return the reconstruction with ``scale`` and ``offset`` undone, (B, M, P) float32."""
        assert self.reconstruction is not None  # in eval mode, it is never None
        patches = self.reconstruction.float()
        if self.scale is not None and self.offset is not None:
            patches = patches * self.scale + self.offset
        return patches


class MaskedEncoder(Encoder):
    """Encoder that is pretrained by predicting masked patches, in ``forward``."""

    config: PretrainingConfig

    def forward(self, source: Tensor, lengths: Tensor | None, mask: MaskIds) -> Prediction:
        """Predict the masked patches from the visible ones.

        Args:
            source: (B, L) int16 or float waveforms at 16 kHz, or (B, T, 128) log-mel; or a row of
                clips (B = 1), see :mod:`mae_ast.core.frontend.rows`.
            lengths: (B,) int64, valid samples (or frames) of each clip; ``None``: all. Of a row,
                the number of its frames that belong to clips.
            mask: partition of each clip's patches into visible and masked ones.

        Raises:
            ValueError: patches overlap, or ``input_frames`` crops patches that the mask refers to.
        """
        raise NotImplementedError

    def masked_patches(self, source: Tensor, lengths: Tensor | None, mask: MaskIds) -> Tensor:
        """Return the patches (B, N, P) of clips, after checking that the mask suits them.

        Raises:
            ValueError: as :meth:`forward`.
        """
        if self.patch_shape.overlaps:
            raise ValueError(
                "patches overlap, so that visible patches would reveal masked ones; pretraining "
                "needs ast_kernel_stride_* equal to ast_kernel_size_*"
            )
        patches = self.patches(source, lengths, mask.clips)
        input_frames, num_patches = self.config.input_frames, patches.shape[1]
        if input_frames is not None and not mask.padded and mask.num_patches > num_patches:
            raise ValueError(
                f"input_frames={input_frames} gives {num_patches} patches, but the mask has "
                f"{mask.num_patches}; crop clips to at most input_frames frames"
            )
        return patches

    def train_heads(self, reconstruction: bool, classification: bool) -> None:
        """Select the heads to train; the others, whose loss has weight 0, are not computed.

        Raises:
            ValueError: the model has no such head.
        """
        trained = {"reconstruction": reconstruction, "classification": classification}
        for name, is_trained in trained.items():
            head = getattr(self, f"final_proj_{name}", None)
            if head is not None:
                head.requires_grad_(is_trained)
            elif is_trained:
                raise ValueError(f"{type(self).__name__} has no {name} head, and so no such loss")

    def computes(self, head: nn.Module) -> bool:
        """Return whether a head is computed: always in eval mode, else if it is trained."""
        return not self.training or any(weight.requires_grad for weight in head.parameters())


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


def mark_weight_decay(model: nn.Module) -> None:
    """Set ``p.no_decay`` for all parameters but the weight matrices of linear layers.

    Biases, layer norms, special tokens and learned positions are thus exempt from weight decay, if
    the optimizer supports ``no_decay``.
    """
    matrices = {id(part.weight) for part in model.modules() if isinstance(part, nn.Linear)}
    for parameter in model.parameters():
        parameter.no_decay = id(parameter) not in matrices  # type: ignore[attr-defined]
