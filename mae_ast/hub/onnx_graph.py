"""Graphs for ONNX export: clips of any length -> last hidden state or scores.

    waveform (B, L) -> log-mel (B, T, 128) -> windows (B W, T', 128) -> tokens (B W, N', D)
    -> last hidden state (B, N, D), or scores (B, C)

The modules call the core's own code; only what depends on the length of a clip in a way that
``torch.export`` cannot trace is written differently: framing, windows and position embeddings. All
clips of a batch have the same length. W windows, of which a clip shorter than one has a single one.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mae_ast.core.frontend.fbank import (
    FRAME_LENGTH,
    FRAME_SHIFT,
    log_mel_of_frames,
    num_samples_of_frames,
)
from mae_ast.core.inference.features import OVERLAP_S, WINDOW_S
from mae_ast.core.inference.whole_clips import longest_window
from mae_ast.core.inference.windows import window_columns
from mae_ast.core.models.classifier import to_scores
from mae_ast.core.models.encoder import Encoder
from mae_ast.core.nn.positions import FixedPositions, LearnedPositions
from mae_ast.finetune.checkpoint import FineTuned

M = TypeVar("M", bound=nn.Module)


class Graph(nn.Module):
    """Interface of the graphs: (B, L) waveforms or (B, T, 128) log-mel -> output.

    Args:
        encoder: encoder, in eval mode.
        length, overlap: of the windows, in columns of patches.
    """

    output = ""
    axes: tuple[str | int, ...] = ()

    def __init__(self, encoder: Encoder, length: int, overlap: int) -> None:
        super().__init__()
        shape = encoder.patch_shape
        self.window_type = encoder.config.window_type
        self.min_frames = shape.time
        self.cut = Windows(encoder, length, overlap)

    @property
    def min_samples(self) -> int:
        """Minimum length of a clip in samples: one patch."""
        return num_samples_of_frames(self.min_frames)

    def log_mel(self, source: Tensor) -> Tensor:
        """Compute log-mel (B, T, 128) of waveforms (B, L); log-mel stays as it is."""
        if source.ndim == 3:
            return source
        if source.dtype == torch.int16:
            source = source.float() / 32768.0
        return log_mel_of_frames(frames_of(source), self.window_type)


class LastHiddenState(Graph):
    """Encoder output of all patches (B, N, D), after the final layer norm if pre-norm.

    Equal to :func:`mae_ast.core.inference.features.extract_features` with its default windows.

    Args:
        encoder: encoder of any system, in eval mode.
    """

    output = "last_hidden_state"

    def __init__(self, encoder: Encoder) -> None:
        super().__init__(encoder, *window_columns(encoder, WINDOW_S, OVERLAP_S))
        self.axes = ("batch", "tokens", encoder.config.encoder_embed_dim)
        self.model = for_any_length(encoder)

    def forward(self, source: Tensor) -> Tensor:
        """Encode clips."""
        log_mel = self.log_mel(source)
        windows, starts = self.cut(log_mel)
        tokens = self.model.encode(windows).patches
        return self.cut.join(tokens, starts, log_mel.shape[1])


class Scores(Graph):
    """Scores of all classes (B, C), as ``mae-ast predict`` gives them.

    Args:
        classifier: classifier of any system.
    """

    output = "scores"

    def __init__(self, classifier: FineTuned) -> None:
        encoder, spec = classifier.model.encoder, classifier.description
        super().__init__(encoder, longest_window(encoder, spec.clip_samples), 0)
        self.axes = ("batch", len(classifier.labels))
        self.independent = spec.independent
        self.model = for_any_length(classifier.model)

    def forward(self, source: Tensor) -> Tensor:
        """Classify clips: mean of the scores of their windows."""
        windows, starts = self.cut(self.log_mel(source))
        scores = to_scores(self.model(windows), self.independent)
        per_window: Tensor = scores.unflatten(0, (-1, starts.shape[0]))
        return per_window.mean(1)


def frames_of(waveforms: Tensor) -> Tensor:
    """Split waveforms into overlapping frames: (B, L) -> (B, T, 400)."""
    num_frames = (waveforms.shape[1] - FRAME_LENGTH) // FRAME_SHIFT + 1
    first = torch.arange(num_frames)[:, None] * FRAME_SHIFT
    return take(waveforms, first + torch.arange(FRAME_LENGTH))


def take(x: Tensor, index: Tensor) -> Tensor:
    """Index dimension 1 as ``x[:, index]``, which is exported as two more transpositions."""
    taken: Tensor = x.index_select(1, index.flatten()).unflatten(1, index.shape)
    return taken


def for_any_length(model: M) -> M:
    """Copy a model, sharing its parameters, with position embeddings that any length can use."""
    copied = copy.deepcopy(model, {id(value): value for value in model.parameters()})
    encoder: Encoder = copied if isinstance(copied, Encoder) else copied.encoder  # type: ignore[assignment]
    encoder.positions = AnyLengthPositions(encoder.positions)
    return copied


class AnyLengthPositions(nn.Module):
    """Position embeddings without a table that grows or a branch on the length of the clip."""

    def __init__(self, positions: nn.Module) -> None:
        super().__init__()
        self.positions = positions

    def forward(self, grid: tuple[int, int], num_steps: Tensor | None = None) -> Tensor:
        """Return the embeddings (1, K + T' F', D) of the prefix tokens and a grid."""
        if isinstance(self.positions, FixedPositions):
            return self.positions.build(grid[0]).unsqueeze(0)
        assert isinstance(self.positions, LearnedPositions)
        fitted: Tensor = self.positions(grid, torch.full((1,), grid[0]))
        return fitted


class Windows(nn.Module):
    """Windows of clips of equal length, as :func:`mae_ast.core.inference.windows.windows` gives.

    Args:
        encoder: encoder of any system; with ``input_frames``, windows are zero-padded to it.
        length, overlap: in columns of patches.
    """

    def __init__(self, encoder: Encoder, length: int, overlap: int) -> None:
        super().__init__()
        self.shape = encoder.patch_shape
        self.input_frames = encoder.config.input_frames
        self.length = length
        self.overlap = overlap

    def forward(self, log_mel: Tensor) -> tuple[Tensor, Tensor]:
        """Cut log-mel (B, T, 128) into windows (B W, T', 128).

        Returns:
            The windows, and the first column (W,) of each window.
        """
        num_frames, shape, hop = log_mel.shape[1], self.shape, self.length - self.overlap
        columns = self._columns(num_frames)
        length = torch.sym_min(columns, self.length)
        num_windows = torch.sym_max((columns - self.length + hop - 1) // hop, 0) + 1
        starts = (torch.arange(num_windows) * hop).clamp(max=columns - length)
        first = starts[:, None] * shape.time_stride
        if self.input_frames is None:
            rows = first + torch.arange(shape.num_frames_of(length))
            return take(log_mel, rows).flatten(0, 1), starts
        # Frames up to the next column, which the model sees, as in cut_parts.
        seen = min(shape.num_frames_of(self.length + 1) - 1, self.input_frames)
        rows = first + torch.arange(seen)
        exists = (rows < num_frames).unsqueeze(2)
        windows = take(log_mel, rows.clamp(max=num_frames - 1)).where(exists, 0.0)
        padded = F.pad(windows, (0, 0, 0, self.input_frames - seen))
        return padded.flatten(0, 1), starts

    def join(self, tokens: Tensor, starts: Tensor, num_frames: int) -> Tensor:
        """Put the tokens of windows (B W, N', D) together: (B, N, D), each column once."""
        tokens = tokens.unflatten(1, (-1, self.shape.per_column))
        tokens = tokens.unflatten(0, (-1, starts.shape[0]))  # (B, W, T', F', D)
        cuts = (starts[:-1] + self.length + starts[1:]) // 2
        column = torch.arange(self._columns(num_frames))
        window = (column[:, None] >= cuts).sum(1)
        return tokens[:, window, column - starts[window]].flatten(1, 2)

    def _columns(self, num_frames: int) -> int:
        """Return the number of columns of a clip that has at least one (no branch: traceable)."""
        return (num_frames - self.shape.time) // self.shape.time_stride + 1
