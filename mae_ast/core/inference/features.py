"""Extract features of recordings of any length: waveforms or files -> (B, N, D) per layer.

Long recordings are processed in overlapping windows (:mod:`mae_ast.core.inference.windows`), and
the centre of each is kept. Batching does not change the features of a window.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mae_ast.core.frontend.fbank import FRAME_SHIFT, num_frames, num_samples_of_frames
from mae_ast.core.frontend.patches import PatchShape, time_steps
from mae_ast.core.inference.collected import Collected
from mae_ast.core.inference.windows import Part, states_of_parts, window_columns, windows
from mae_ast.core.io.audio import SAMPLE_RATE
from mae_ast.core.io.read_ahead import map_ahead, one_ahead
from mae_ast.core.io.recordings import Waveform, is_one_recording, path_of, read_recording
from mae_ast.core.models.encoder import Encoder
from mae_ast.core.nn.packed import packed_weights
from mae_ast.core.nn.precision import resolve_precision

__all__ = ["Features", "Waveform", "extract_features"]

WINDOW_S = 10.0  # length of the clips in pretraining
OVERLAP_S = 2.0
BATCH_S = 80.0  # audio per forward pass
CHUNK_S = 640.0  # audio that is read while features of other recordings are computed
READERS = 4  # recordings decoded concurrently


@dataclass(frozen=True)
class Features:
    """Features of B recordings, on the CPU, in float32.

    Args:
        layers: the layers, counted from 1.
        hidden_states: for each of ``layers`` (B, N, D), one token per patch, time first;
            zero-padded to the longest recording. Empty if only ``pooled`` was requested.
        lengths: (B,) int64, valid time steps of each recording, of ``per_column`` tokens each.
        times_s: (T',) float64, centre of each time step in seconds.
        pooled: (B, layers, C D), mean of ``time_steps`` over the valid time steps. (Averaging over
            mel as well would discard the position in mel, which carries much information.)
        per_column: C, tokens per time step, along mel; 1 for frame models.
    """

    layers: tuple[int, ...]
    hidden_states: tuple[Tensor, ...]
    lengths: Tensor
    times_s: Tensor
    pooled: Tensor
    per_column: int

    @property
    def time_steps(self) -> tuple[Tensor, ...]:
        """Hidden states (B, T', C D): the C tokens of a time step concatenated, low mel first."""
        return tuple(time_steps(states, self.per_column) for states in self.hidden_states)

    def __repr__(self) -> str:
        """Summarise layers, shapes and the rate of the time steps, without values."""
        states = self.hidden_states
        shapes = f"{len(states)} x {tuple(states[0].shape)}" if states else "()"
        steps = self.times_s
        rate = f" at {1 / float(steps[1] - steps[0]):g} Hz" if len(steps) > 1 else ""
        return (
            f"Features(layers={self.layers}, hidden_states={shapes}, "
            f"lengths={tuple(self.lengths.shape)}, times_s={tuple(steps.shape)}{rate}, "
            f"pooled={tuple(self.pooled.shape)}, per_column={self.per_column})"
        )


@torch.no_grad()
def extract_features(
    model: Encoder,
    waveforms: Waveform | Sequence[Waveform],
    sample_rate: int = SAMPLE_RATE,
    *,
    layers: Sequence[int] | None = None,
    pooled_only: bool = False,
    folder: str | os.PathLike[str] | None = None,
    window_s: float = WINDOW_S,
    overlap_s: float = OVERLAP_S,
    batch_s: float = BATCH_S,
    precision: str | None = None,
) -> Features:
    """Extract features of recordings, without gradients.

    Recordings are decoded while features of others are computed. No layers above the highest one
    of ``layers`` are computed.

    Args:
        model: any system, on any device; its training mode is restored. For a model with
            ``input_frames``, shorter clips are zero-padded to that length, and the features of the
            padding are dropped.
        waveforms: one recording or several of any lengths, each (L,) int16 or float in [-1, 1],
            the path of a file, a tuple (waveform, sample rate) as ``torchaudio.load`` returns it,
            (L,) or (channels, L), or an item of an audio column of Hugging Face's ``datasets``:
            ``{"array", "sampling_rate"}``, ``{"bytes", "path"}``, or its decoder.
        sample_rate: sample rate of arrays, in Hz; the other forms contain their own.
        layers: counted from 1, -1 being the last; default: all.
        pooled_only: leave ``hidden_states`` empty to save memory.
        folder: write the hidden states to ``layer_<n>.npy`` in it, and return them memory-mapped.
        window_s: length in seconds of the windows that longer recordings are split into, at most
            the model's ``input_frames``.
        overlap_s: overlap of adjacent windows in seconds; scaled down with shorter windows.
        batch_s: maximum seconds of audio per forward pass.
        precision: "float32"; "bfloat16", which takes half the time on devices that multiply
            bfloat16 matrices in hardware, and differs from float32 by about 1 %; or "auto",
            bfloat16 on these devices and else float32. ``None``: ``model.precision``, which is
            float32 in loaded models. On a CPU, bfloat16 keeps a packed copy of the weights for
            later calls (:mod:`mae_ast.core.nn.packed`).

    Raises:
        ValueError: a recording has a wrong shape, holds values that are not finite or not in
            [-1, 1], or is shorter than one patch; a layer does not exist; window, overlap or
            sample rate is invalid; or the device does not support bfloat16 in hardware.
        FileNotFoundError, AudioError: a file does not exist, or cannot be decoded.
    """
    length, overlap = window_columns(model, window_s, overlap_s)
    chosen = _layers(layers, model.config.encoder_layers)
    shape = model.patch_shape
    is_one = is_one_recording(waveforms)
    listed: list[Waveform] = [waveforms] if is_one else list(waveforms)  # type: ignore[list-item,arg-type]
    if not listed:
        raise ValueError("no waveform given; at least one is required")
    is_array = isinstance(waveforms, (Tensor, np.ndarray)) and not is_one
    width = model.config.encoder_embed_dim
    out = Collected(chosen, shape.per_column, width, not pooled_only, folder)
    chunk_s = CHUNK_S if out.folder is None else float("inf")  # files have a fixed size
    chunks = _chunks(listed, sample_rate, shape, is_array, chunk_s)
    first = 0
    try:
        with _evaluating(model, precision, max(chosen)), closing(one_ahead(chunks)) as ahead:
            for clips in ahead:
                columns = [shape.grid(num_frames(len(clip)))[0] for clip in clips]
                out.add_recordings(columns)
                for batch in _batches(model, columns, length, overlap, batch_s):
                    _run(model, clips, batch, first, out)
                first += len(clips)
        return _features(out, shape)
    finally:
        out.discard_unfinished()


@contextmanager
def _evaluating(model: Encoder, precision: str | None, num_layers: int) -> Iterator[None]:
    """Set evaluation mode, a precision and packed weights, and restore the state at the end."""
    was_training, own_precision = model.training, model.precision
    if precision is not None:
        device = model.batch_norm.running_mean.device
        model.precision = resolve_precision(precision, device.type)
    model.eval()
    try:
        with packed_weights(model.encoder.layers[:num_layers], model.precision):
            yield
    finally:
        model.train(was_training)
        model.precision = own_precision


def _chunks(
    listed: list[Waveform],
    sample_rate: int | None,
    shape: PatchShape,
    is_array: bool,
    size_s: float,
) -> Generator[list[Tensor], None, None]:
    """Read recordings in chunks of about ``size_s`` seconds, and check that none is too short.

    Args:
        listed: the recordings.
        sample_rate: as in :func:`extract_features`.
        shape: size of the patches.
        is_array: the recordings are the rows of an array.
        size_s: size of a chunk.
    """

    def read(number: int) -> Tensor:
        clip = read_recording(listed[number], sample_rate, f"waveform {number}")
        if len(clip) < shape.min_samples:
            raise ValueError(
                f"waveform {path_of(listed[number]) or number}: {len(clip)} samples at 16 kHz are "
                f"shorter than one patch ({shape.min_samples})"
                f"{'; an array is (recordings, samples), one channel each' if is_array else ''}"
            )
        return clip

    chunk: list[Tensor] = []
    size = 0
    with closing(map_ahead(read, range(len(listed)), READERS, READERS)) as clips:
        for clip in clips:
            chunk.append(clip)
            size += len(clip)
            if size >= size_s * SAMPLE_RATE:
                yield chunk
                chunk, size = [], 0
    if chunk:
        yield chunk


def _batches(
    model: Encoder, columns: list[int], length: int, overlap: int, batch_s: float
) -> Iterator[list[Part]]:
    """Group the windows of all clips into batches of at most ``batch_s``, longest clips first."""
    shape, input_frames = model.patch_shape, model.config.input_frames
    padded_columns = 0 if input_frames is None else shape.grid(input_frames)[0]
    max_columns = max(1, round(batch_s * SAMPLE_RATE / (FRAME_SHIFT * shape.time_stride)))
    batch: list[Part] = []
    for clip in sorted(range(len(columns)), key=lambda n: -columns[n]):
        for window in windows(columns[clip], length, overlap):
            widths = [p.window.end - p.window.start for p in (*batch, Part(clip, window))]
            if batch and max(padded_columns, *widths) * len(widths) > max_columns:
                yield batch
                batch = []
            batch.append(Part(clip, window))
    if batch:
        yield batch


def _run(
    model: Encoder, clips: list[Tensor], batch: list[Part], first: int, out: Collected
) -> None:
    """Compute a batch of windows; ``first`` is the index of the first clip among all recordings."""
    states = states_of_parts(model, clips, batch, max(out.layers))
    for index, layer in enumerate(out.layers):
        values = states[layer - 1].float().cpu()
        for row, part in enumerate(batch):
            w = part.window
            begin, end = ((at - w.start) * out.per_column for at in (w.keep_from, w.keep_to))
            out.add(index, first + part.clip, w.keep_from, values[row, begin:end])


def _features(found: Collected, shape: PatchShape) -> Features:
    step = FRAME_SHIFT * shape.time_stride
    half = num_samples_of_frames(shape.time) / 2
    columns, means = found.columns, found.means
    steps = torch.arange(int(columns.max()), dtype=torch.float64)
    times_s = (steps * step + half) / SAMPLE_RATE
    return Features(found.layers, found.finish(), columns, times_s, means, found.per_column)


def _layers(layers: Sequence[int] | None, count: int) -> tuple[int, ...]:
    if layers is None:
        return tuple(range(1, count + 1))
    if not layers or any(not 1 <= layer <= count and layer != -1 for layer in layers):
        raise ValueError(f"layers {list(layers)}; the model has 1 to {count}, -1 is the last")
    return tuple(count if layer == -1 else layer for layer in layers)
