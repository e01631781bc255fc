"""MAE-AST, SSAST, AST and Audio-MAE encoders and classifiers for transformers, in plain PyTorch.

    waveforms (B, L) -> log-mel (B, T, 128) -> normalised -> patches (B, N, P) -> tokens (B, N, D)
    -> with prefix tokens and positions (B, K + N, D) -> transformer (B, K + N, D)
    -> mean (B, D or F' D) -> head -> logits (B, C)

B clips, L samples at 16 kHz, T frames of 10 ms, N = T' F' patches in T' time steps of F' patches,
low mel bins first, P values per patch, K prefix tokens, D width, C classes.

Part of the Python package mae-ast (MIT licence), which is not needed to use this file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling, SequenceClassifierOutput

from .configuration_spectrogram_transformer import SpectrogramTransformerConfig
from .layers_spectrogram_transformer import (
    FRAME_SHIFT,
    SAMPLE_RATE,
    LearnedPositions,
    Transformer,
    fixed_positions,
    log_mel,
    num_frames,
    num_samples,
)

TARGET_STD = 0.5  # of the normalised input
LONGEST_S = 30.0  # window of classifiers without input_frames, unless trained on longer clips
BATCH_SAMPLES = 160 * SAMPLE_RATE  # of windows in one pass


@dataclass
class SpectrogramTransformerOutput(BaseModelOutputWithPooling):
    """Output of :class:`SpectrogramTransformerModel`.

    Args:
        last_hidden_state: (B, K + N, D), the prefix tokens and the patches.
        pooler_output: (B, D) float32, mean over the patches, or over the prefix tokens.
        hidden_states: per layer (B, K + N, D), before the final layer norm; first the input of the
            first layer.
        patch_mask: (B, N) bool, False = padding; ``None``: no padding.
    """

    patch_mask: Tensor | None = None


class SpectrogramTransformerPreTrainedModel(PreTrainedModel):
    """Base class: configuration, initialisation and loading."""

    config_class = SpectrogramTransformerConfig
    base_model_prefix = "model"
    main_input_name = "input_values"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["TransformerLayer"]  # noqa: RUF012

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=std)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, LearnedPositions):
            nn.init.trunc_normal_(module.table, std=std)
        elif isinstance(module, SpectrogramTransformerModel) and self.config.prefix_tokens:
            nn.init.trunc_normal_(module.prefix_tokens, std=std)


class SpectrogramTransformerModel(SpectrogramTransformerPreTrainedModel):
    """Encoder of MAE-AST, SSAST, AST or Audio-MAE, from waveforms at 16 kHz."""

    # The head of a classifier.
    _keys_to_ignore_on_load_unexpected = [r"^head\."]  # noqa: RUF012

    def __init__(self, config: SpectrogramTransformerConfig) -> None:
        super().__init__(config)
        width = config.encoder_embed_dim
        self.size = (config.ast_kernel_size_time, config.ast_kernel_size_chan)
        self.stride = (config.ast_kernel_stride_time, config.ast_kernel_stride_chan)
        self.post_extract_proj = nn.Linear(self.size[0] * self.size[1], width)
        if config.prefix_tokens:
            self.prefix_tokens = nn.Parameter(torch.zeros(1, config.prefix_tokens, width))
        if config.positions == "learned":
            self.positions = LearnedPositions(config)
        self.encoder = Transformer(config)
        self.post_init()

    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Encode clips.

        Args:
            input_values: (B, L) waveforms at 16 kHz, int16 or float in [-1, 1], zero-padded at the
                end.
            attention_mask: (B, L), 1 = sample, 0 = padding; ``None``: no padding.
            output_hidden_states: return the output of each layer.
            return_dict: ``False``: return a tuple.

        Raises:
            ValueError: the clips are shorter than one patch.
        """
        lengths = None if attention_mask is None else attention_mask.sum(1)
        patches, num_columns = self.patches(input_values, lengths)
        grid = (patches.shape[1] // self.config.per_column, self.config.per_column)
        patch_mask = None
        if num_columns is not None:
            index = torch.arange(patches.shape[1], device=patches.device)
            patch_mask = index < num_columns[:, None] * grid[1]
        tokens = self.post_extract_proj(patches.to(self.post_extract_proj.weight.dtype))
        mask = patch_mask
        if self.config.prefix_tokens:
            prefix = self.prefix_tokens.expand(len(tokens), -1, -1)
            tokens = torch.cat((prefix, tokens), 1)
            mask = None if mask is None else F.pad(mask, (self.config.prefix_tokens, 0), value=True)
        mask = None if mask is None else mask[:, None, None, :]
        x, states = self.encoder(tokens + self.position_embeddings(grid, num_columns), mask)
        pooled = self.pool(x, patch_mask)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        kept = states if output_hidden_states else None
        out = SpectrogramTransformerOutput(x, pooled, kept, patch_mask=patch_mask)
        return out if _as_dict(return_dict, self.config) else out.to_tuple()

    def patches(self, source: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return normalised patches (B, N, P) float32, and each clip's time steps (B,).

        Args:
            source: (B, L) waveforms.
            lengths: (B,) int64, samples of each clip; ``None``: L.
        """
        config, size, stride = self.config, self.size, self.stride
        if source.shape[1] < num_samples(size[0]):
            raise ValueError(
                f"input_values: {source.shape[1]} samples at 16 kHz are shorter than one patch "
                f"({num_samples(size[0])})"
            )
        frames = None if lengths is None else num_frames(lengths).clamp(min=0)
        target = config.input_frames
        with torch.autocast(source.device.type, enabled=False):
            x = log_mel(source, config.window_type)
            if target is not None:
                x = F.pad(x[:, :target], (0, 0, 0, max(0, target - x.shape[1])))
                if frames is not None:
                    index = torch.arange(target, device=x.device)
                    x = x.where((index < frames[:, None])[..., None], 0.0)
                frames = None
            x = (x - config.input_mean) * (TARGET_STD / math.sqrt(config.input_std**2 + 1e-5))
            x = x.unfold(1, size[0], stride[0]).unfold(2, size[1], stride[1])
        num_columns = None if frames is None else config.num_columns(frames).clamp(min=0)
        return x.flatten(3).flatten(1, 2), num_columns

    def position_embeddings(self, grid: tuple[int, int], num_columns: Tensor | None) -> Tensor:
        """Return position embeddings (1 or B, K + N, D) of a grid (T', F')."""
        config = self.config
        if config.positions == "learned":
            learned: Tensor = self.positions(grid, num_columns)
            return learned
        weight = self.post_extract_proj.weight
        fixed = fixed_positions(
            config.positions,
            config.prefix_tokens,
            grid,
            self.size,
            self.stride,
            config.encoder_embed_dim,
            weight.device,
        )
        return fixed.to(weight.dtype)

    def pool(self, x: Tensor, patch_mask: Tensor | None) -> Tensor:
        """Return the mean (B, D) float32 of the tokens that represent a clip."""
        num_prefix = self.config.prefix_tokens
        if self.config.pool == "prefix":
            return x[:, :num_prefix].float().mean(1)
        return _masked_mean(x[:, num_prefix:].float(), patch_mask)


class SpectrogramTransformerForAudioClassification(SpectrogramTransformerPreTrainedModel):
    """Encoder with a classification head.

    In eval mode, a clip longer than ``input_frames`` (without it, than 30 s or the clips in
    fine-tuning) is split into windows, and its logits are those of the mean probability over them.
    """

    def __init__(self, config: SpectrogramTransformerConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = SpectrogramTransformerModel(config)
        hidden = config.encoder_embed_dim
        width = hidden * (config.per_column if config.head_pool == "time_steps" else 1)
        layers: list[nn.Module] = [nn.LayerNorm(width, config.head_layer_norm_eps)]
        if config.head_kind == "mlp":
            layers += [nn.Linear(width, hidden), nn.GELU()]
            width = hidden
        layers += [nn.Dropout(config.head_dropout), nn.Linear(width, config.num_labels)]
        self.head = nn.Sequential(*layers)
        self.post_init()

    @property
    def is_multi_label(self) -> bool:
        """True if scores are sigmoids; else they are a softmax over all classes."""
        return bool(self.config.problem_type == "multi_label_classification")

    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Classify clips.

        Args:
            input_values, attention_mask, output_hidden_states, return_dict: as in
                :class:`SpectrogramTransformerModel`. No hidden states are returned if clips are
                split into windows.
            labels: (B,) int64, the classes; if multi-label (B, C), 1 for the classes of a clip.
                Unless ``problem_type`` is set, floating-point labels set it to multi-label, and
                others to single-label, as in transformers' own classes.

        Raises:
            ValueError: the clips are shorter than one patch.
        """
        if labels is not None and self.config.problem_type is None:
            kind = "multi" if labels.is_floating_point() else "single"
            self.config.problem_type = f"{kind}_label_classification"
        states = None
        parts = [] if self.training else self.windows(input_values, attention_mask)
        if len(parts) > len(input_values):
            logits = self.logits_of_windows(parts, len(input_values))
        else:
            encoded = self.model(
                input_values, attention_mask, output_hidden_states, return_dict=True
            )
            logits, states = self.logits(encoded), encoded.hidden_states
        loss = None
        if labels is not None and self.is_multi_label:
            loss = F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
        elif labels is not None:
            loss = F.cross_entropy(logits, labels)
        out = SequenceClassifierOutput(loss, logits, states)
        return out if _as_dict(return_dict, self.config) else out.to_tuple()

    def logits(self, encoded: SpectrogramTransformerOutput) -> Tensor:
        """Return logits (B, C) float32 of encoded clips."""
        config, pooled, valid = self.config, encoded.pooler_output, encoded.patch_mask
        if config.head_pool != "encoder":
            tokens = encoded.last_hidden_state[:, config.prefix_tokens :].float()
            if config.head_pool == "time_steps":
                tokens = tokens.unflatten(1, (-1, config.per_column)).flatten(2)
                valid = None if valid is None else valid[:, :: config.per_column]
            pooled = _masked_mean(tokens, valid)
        logits: Tensor = self.head(pooled.to(self.head[0].weight.dtype))
        return logits.float()

    def windows(self, source: Tensor, mask: Tensor | None) -> list[tuple[int, Tensor]]:
        """Split clips (B, L) into windows: (clip, samples) of each, in the order of the clips."""
        config, step = self.config, FRAME_SHIFT * self.model.stride[0]
        longest = max(round(LONGEST_S * SAMPLE_RATE), config.clip_samples)
        limit = max(1, config.num_columns(num_frames(longest)))
        if config.input_frames is not None:
            limit = min(limit, config.num_columns(config.input_frames))
        if config.num_columns(num_frames(source.shape[1])) <= limit:
            return []
        lengths = [source.shape[1]] * len(source) if mask is None else mask.sum(1).tolist()
        parts = []
        for clip, length in enumerate(lengths):
            last = max(0, config.num_columns(num_frames(length)) - limit)
            for start in (*range(0, last, limit), last):
                # A window ends before the samples that complete another time step.
                until = start * step + num_samples(self.model.size[0]) + limit * step - 1
                parts.append((clip, source[clip, start * step : min(until, length)]))
        return parts

    def logits_of_windows(self, parts: list[tuple[int, Tensor]], num_clips: int) -> Tensor:
        """Return the logits (B, C) of each clip's mean probability over its windows."""
        longest = max(len(samples) for _, samples in parts)
        size = max(1, BATCH_SAMPLES // longest)
        logits = []
        for begin in range(0, len(parts), size):
            waves = [samples for _, samples in parts[begin : begin + size]]
            source = pad_sequence(waves, batch_first=True)
            lengths = torch.tensor([len(samples) for samples in waves], device=source.device)
            mask = torch.arange(source.shape[1], device=source.device) < lengths[:, None]
            logits.append(self.logits(self.model(source, mask, return_dict=True)))
        clips = torch.tensor([clip for clip, _ in parts], device=self.device)
        of_windows = torch.cat(logits)
        return torch.stack([self.mean_logits(of_windows[clips == n]) for n in range(num_clips)])

    def mean_logits(self, logits: Tensor) -> Tensor:
        """Return logits (C,) whose sigmoid or softmax is the mean probability of (W, C) logits."""
        if self.is_multi_label:
            return F.logsigmoid(logits).logsumexp(0) - F.logsigmoid(-logits).logsumexp(0)
        return F.log_softmax(logits, 1).logsumexp(0) - math.log(len(logits))


def _masked_mean(tokens: Tensor, valid: Tensor | None) -> Tensor:
    """Return the mean (B, D) over the valid tokens of (B, N, D)."""
    if valid is None:
        return tokens.mean(1)
    total = tokens.where(valid[..., None], 0.0).sum(1)
    return total / valid.sum(1, keepdim=True).clamp(min=1)


def _as_dict(return_dict: bool | None, config: SpectrogramTransformerConfig) -> bool:
    return bool(config.return_dict if return_dict is None else return_dict)
