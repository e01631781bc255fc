"""Collect the tokens of recordings by layer, in memory or in files, and their sums over time."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


class Collected:
    """Tokens (B, N, D) of B recordings, which arrive in parts, and their sums over time steps.

    Args:
        layers: the layers, counted from 1.
        per_column: C, tokens per time step.
        width: D.
        keep_states: keep the tokens; else only their sums.
        folder: write the tokens to ``layer_<n>.npy`` in it, which is created; ``None``: keep them
            in memory.
    """

    def __init__(
        self,
        layers: tuple[int, ...],
        per_column: int,
        width: int,
        keep_states: bool,
        folder: str | os.PathLike[str] | None,
    ) -> None:
        self.layers = layers
        self.per_column = per_column
        self.in_memory = keep_states and folder is None
        self.folder = folder if keep_states else None
        self._width = width
        self._states: list[list[Tensor]] = [[] for _ in layers]
        self._files: list[_StatesFile] = []
        self._sums: list[Tensor] = []
        self._columns: list[int] = []

    @property
    def columns(self) -> Tensor:
        """(B,) int64, time steps of each recording."""
        return torch.tensor(self._columns)

    @property
    def means(self) -> Tensor:
        """(B, layers, C D) float32, mean over the time steps of each recording."""
        return (torch.stack(self._sums) / self.columns[:, None, None]).float()

    def add_recordings(self, columns: Sequence[int]) -> None:
        """Add recordings with these numbers of time steps; with a folder, all at once.

        Raises:
            OSError: the files could not be written.
        """
        self._columns += columns
        for number in columns:
            width = self.per_column * self._width
            self._sums.append(torch.zeros(len(self.layers), width, dtype=torch.float64))
            if self.in_memory:
                for states in self._states:
                    states.append(torch.zeros(number * self.per_column, self._width))
        if self.folder is not None:
            shape = (len(columns), max(columns) * self.per_column, self._width)
            with _writing(self.folder):
                folder = Path(self.folder)
                folder.mkdir(parents=True, exist_ok=True)
                for layer in self.layers:
                    self._files.append(_StatesFile(folder / f"layer_{layer}.npy", shape))

    def add(self, index: int, recording: int, step: int, tokens: Tensor) -> None:
        """Add tokens (K, D) of a layer and a recording, which begin at a time step.

        Raises:
            OSError: the files could not be written.
        """
        start = step * self.per_column
        if self.folder is not None:
            with _writing(self.folder):
                self._files[index].write(recording, start, tokens)
        elif self.in_memory:
            self._states[index][recording][start : start + len(tokens)] = tokens
        steps = tokens.reshape(-1, self.per_column * self._width)
        self._sums[recording][index] += steps.sum(0, dtype=torch.float64)

    def finish(self) -> tuple[Tensor, ...]:
        """Return the tokens by layer, (B, N, D) each, zero-padded; empty if they are not kept.

        Raises:
            OSError: the files could not be written.
        """
        if self.folder is not None:
            with _writing(self.folder):
                found = [file.close() for file in self._files]
            self._files = []
            return tuple(found)
        if not self.in_memory:
            return ()
        padded = []
        for states in self._states:
            padded.append(states[0][None] if len(states) == 1 else pad_sequence(states, True))
            states.clear()
        return tuple(padded)

    def discard_unfinished(self) -> None:
        """Remove incomplete files."""
        for file in self._files:
            file.discard()


@contextmanager
def _writing(folder: object) -> Iterator[None]:
    """Name the folder in errors of writing."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{folder}: could not be written ({error.strerror or error})") from error


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
