"""Extract features of recordings of any length: waveforms or files -> (B, N, D) per layer.

Long recordings are processed in overlapping windows (:mod:`mae_ast.core.inference.windows`), and
the centre of each is kept. Batching does not change the features of a window.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mae_ast.core.frontend.fbank import FRAME_SHIFT, num_frames, num_samples_of_frames
from mae_ast.core.frontend.patches import PatchShape, time_steps
from mae_ast.core.inference.windows import Part, states_of_parts, window_columns, windows
from mae_ast.core.io.audio import SAMPLE_RATE
from mae_ast.core.io.recordings import Waveform, is_one_recording, path_of, read_recording
from mae_ast.core.models.encoder import Encoder

__all__ = ["Features", "Waveform", "extract_features"]

WINDOW_S = 10.0  # length of the clips in pretraining
OVERLAP_S = 2.0
BATCH_S = 80.0  # audio per forward pass


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
) -> Features:
    """Extract features of recordings, without gradients.

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

    Raises:
        ValueError: a recording has a wrong shape, holds values that are not finite or not in
            [-1, 1], or is shorter than one patch; a layer does not exist; window, overlap or
            sample rate is invalid.
        FileNotFoundError, AudioError: a file does not exist, or cannot be decoded.
    """
    length, overlap = window_columns(model, window_s, overlap_s)
    chosen = _layers(layers, model.config.encoder_layers)
    shape = model.patch_shape
    clips = _read(waveforms, sample_rate, shape)
    columns = torch.tensor([shape.grid(num_frames(len(clip)))[0] for clip in clips])
    out = _Collected(chosen, columns, shape.per_column, model.config.encoder_embed_dim)
    was_training = model.training
    model.eval()
    try:
        if not pooled_only:
            out.allocate(folder)
        for batch in _batches(model, columns.tolist(), length, overlap, batch_s):
            _run(model, clips, batch, out)
        return out.features(shape)
    except OSError as error:
        raise OSError(f"{folder}: could not be written ({error.strerror or error})") from error
    finally:
        out.discard_unfinished()
        model.train(was_training)


def _read(
    waveforms: Waveform | Sequence[Waveform], sample_rate: int | None, shape: PatchShape
) -> list[Tensor]:
    """Read the recordings, and check that each is as long as a patch."""
    is_one = is_one_recording(waveforms)
    listed: list[Waveform] = [waveforms] if is_one else list(waveforms)  # type: ignore[list-item,arg-type]
    if not listed:
        raise ValueError("no waveform given; at least one is required")
    clips = [read_recording(item, sample_rate, f"waveform {n}") for n, item in enumerate(listed)]
    for number, clip in enumerate(clips):
        if len(clip) < shape.min_samples:
            name = path_of(listed[number]) or number
            is_array = isinstance(waveforms, (Tensor, np.ndarray)) and not is_one
            raise ValueError(
                f"waveform {name}: {len(clip)} samples at 16 kHz are shorter than one patch "
                f"({shape.min_samples})"
                f"{'; an array is (recordings, samples), one channel each' if is_array else ''}"
            )
    return clips


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


def _run(model: Encoder, clips: list[Tensor], batch: list[Part], out: _Collected) -> None:
    states = states_of_parts(model, clips, batch)
    for index, layer in enumerate(out.layers):
        values = states[layer - 1].float().cpu()
        for row, part in enumerate(batch):
            w = part.window
            begin, end = ((at - w.start) * out.per_column for at in (w.keep_from, w.keep_to))
            out.add(index, part.clip, w.keep_from * out.per_column, values[row, begin:end])


class _Collected:
    """Collector of the kept tokens, in memory or in files, and of their sums."""

    def __init__(
        self, layers: tuple[int, ...], columns: Tensor, per_column: int, width: int
    ) -> None:
        self.layers = layers
        self.per_column = per_column
        self._columns = columns
        self._shape = (len(columns), int(columns.max()) * per_column, width)
        self._states: list[Tensor] = []
        self._files: list[_StatesFile] = []
        self._sums = torch.zeros(len(columns), len(layers), per_column * width).double()

    def allocate(self, folder: str | os.PathLike[str] | None) -> None:
        if folder is None:
            self._states = [torch.zeros(self._shape) for _ in self.layers]
            return
        Path(folder).mkdir(parents=True, exist_ok=True)
        for layer in self.layers:
            self._files.append(_StatesFile(Path(folder) / f"layer_{layer}.npy", self._shape))

    def add(self, index: int, clip: int, start: int, tokens: Tensor) -> None:
        """Add tokens (K, D) of a clip, at offset ``start``."""
        if self._files:
            self._files[index].write(clip, start, tokens)
        elif self._states:
            self._states[index][clip, start : start + len(tokens)] = tokens
        steps = tokens.reshape(-1, self._sums.shape[2])
        self._sums[clip, index] += steps.sum(0, dtype=torch.float64)

    def discard_unfinished(self) -> None:
        for file in self._files:
            file.discard()

    def features(self, shape: PatchShape) -> Features:
        self._states += [file.close() for file in self._files]
        self._files = []
        step = FRAME_SHIFT * shape.time_stride
        half = num_samples_of_frames(shape.time) / 2
        steps = torch.arange(int(self._columns.max()), dtype=torch.float64)
        return Features(
            self.layers,
            tuple(self._states),
            self._columns,
            (steps * step + half) / SAMPLE_RATE,
            (self._sums / self._columns[:, None, None]).float(),
            self.per_column,
        )


class _StatesFile:
    """A (B, N, D) float32 ``.npy`` file that is written in parts, without holding it in memory."""

    def __init__(self, path: Path, shape: tuple[int, int, int]) -> None:
        # Renamed once complete, so that an older file that is still memory-mapped stays intact.
        self._path, self._part = path, path.with_name(f".{path.name}.{os.getpid()}.part")
        array = np.lib.format.open_memmap(self._part, "w+", np.float32, shape)
        self._begin, self._shape = array.offset, shape
        del array
        self._file = self._part.open("r+b")

    def write(self, clip: int, start: int, tokens: Tensor) -> None:
        _, per_clip, width = self._shape
        self._file.seek(self._begin + (clip * per_clip + start) * width * 4)
        self._file.write(tokens.contiguous().numpy().data)

    def close(self) -> Tensor:
        """Close and rename the file, and return it memory-mapped."""
        self._file.close()
        os.replace(self._part, self._path)
        return torch.from_numpy(np.load(self._path, mmap_mode="c"))

    def discard(self) -> None:
        """Remove the incomplete file."""
        with suppress(OSError):
            self._file.close()
        self._part.unlink(missing_ok=True)


def _layers(layers: Sequence[int] | None, count: int) -> tuple[int, ...]:
    if layers is None:
        return tuple(range(1, count + 1))
    if not layers or any(not 1 <= layer <= count and layer != -1 for layer in layers):
        raise ValueError(f"layers {list(layers)}; the model has 1 to {count}, -1 is the last")
    return tuple(count if layer == -1 else layer for layer in layers)
