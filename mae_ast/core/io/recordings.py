"""Read a recording in any common form as 16 kHz samples: -> (L,).

Supported: paths, arrays, ``(waveform, sample_rate)`` as returned by ``torchaudio.load``, and the
audio columns of Hugging Face ``datasets``: ``{"array", "sampling_rate"}``, ``{"bytes", "path"}`` of
columns with ``decode=False``, and the decoders of version 4.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping
from numbers import Real
from pathlib import Path
from typing import Any, Protocol, TypeGuard, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from mae_ast.core.io.audio import (
    MAX_PEAK,
    SAMPLE_RATE,
    SOURCE_RATES,
    AudioError,
    read_long_audio,
    resample_to_16k,
)
from mae_ast.core.io.decoding.downmix import Downmix


@runtime_checkable
class Decoder(Protocol):
    """Audio decoder with torchcodec's interface."""

    def get_all_samples(self) -> Any:
        """Decode to ``data`` (channels, samples) float and ``sample_rate`` in Hz."""


WithRate = tuple[Tensor | np.ndarray, float]
Waveform = Tensor | np.ndarray | str | os.PathLike[str] | Mapping[str, Any] | Decoder | WithRate

WAVEFORM_HELP = (
    "expected a path, (samples,) int16 or float in [-1, 1], (waveform, sample_rate), or "
    "{'array': ..., 'sampling_rate': ...}"
)


def is_one_recording(waveforms: object) -> bool:
    """Return whether ``waveforms`` is one recording, not a sequence of several."""
    if isinstance(waveforms, (Tensor, np.ndarray)):
        return waveforms.ndim < 2
    if _has_rate(waveforms):
        return True
    several = isinstance(waveforms, Iterable) and not isinstance(waveforms, (str, Mapping))
    return not several or isinstance(waveforms, (os.PathLike, Decoder))


def path_of(item: Waveform) -> str | None:
    """Return the path of a recording, for messages; ``None`` if it has none."""
    if isinstance(item, Mapping):
        item = item.get("path") or ""
    return (os.fspath(item) or None) if isinstance(item, (str, os.PathLike)) else None


def read_recording(item: Waveform, sample_rate: object, name: str) -> Tensor:
    """Read a recording as (L,) at 16 kHz, int16 or float32 in [-1, 1].

    Args:
        item: the recording. Several channels are averaged; an array may have channels, (C, L), only
            if it comes with its sample rate.
        sample_rate: sample rate of a bare array, in Hz; the other forms have their own.
        name: name of the recording, for messages.

    Raises:
        ValueError: the form, shape, dtype or sample rate is not supported, or values are not finite
            or out of range.
        FileNotFoundError, AudioError: a file does not exist or cannot be decoded.
    """
    if isinstance(item, Mapping):
        if item.get("array") is not None:
            if "sampling_rate" not in item:
                raise ValueError(f"{name}: has 'array' without 'sampling_rate'")
            return _from_array(item["array"], item["sampling_rate"], name, may_have_channels=True)
        if item.get("bytes") is not None:
            return _from_bytes(item["bytes"], path_of(item) or name)
        if not item.get("path"):
            raise ValueError(f"{name}: has the keys {', '.join(map(str, item))}; {WAVEFORM_HELP}")
        item = item["path"]
    if isinstance(item, (str, os.PathLike)):
        return read_long_audio(item)
    if _has_rate(item):
        return _from_array(*item, name, may_have_channels=True)
    if isinstance(item, Decoder):
        decoded = item.get_all_samples()
        return _from_array(decoded.data, decoded.sample_rate, name, may_have_channels=True)
    return _from_array(item, sample_rate, name)


def _has_rate(item: object) -> TypeGuard[WithRate]:
    return isinstance(item, tuple) and len(item) == 2 and isinstance(item[1], Real)


def _from_bytes(content: bytes, name: str) -> Tensor:
    """Decode the content of a file, using the suffix of its name as a hint."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"audio{Path(name).suffix}"
        path.write_bytes(content)
        try:
            return read_long_audio(path)
        except AudioError as error:
            raise AudioError(str(error).replace(str(path), name)) from error


def _from_array(
    array: Any, sample_rate: object, name: str, may_have_channels: bool = False
) -> Tensor:
    try:
        samples = torch.as_tensor(array).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name}: has type {type(array).__name__}; {WAVEFORM_HELP}") from error
    if samples.ndim != 1 and not (may_have_channels and samples.ndim == 2):
        expected = "(samples,) or (channels, samples)" if may_have_channels else "(samples,)"
        raise ValueError(f"{name}: has shape {tuple(samples.shape)}; expected {expected}")
    if samples.ndim == 2 and samples.shape[0] > samples.shape[1]:
        raise ValueError(
            f"{name}: has shape {tuple(samples.shape)}; expected (channels, samples) (transpose "
            "the array that soundfile returns)"
        )
    if samples.dtype != torch.int16:
        if not samples.is_floating_point():
            raise ValueError(
                f"{name}: has dtype {samples.dtype}; expected int16 or float in [-1, 1]"
            )
        samples = samples.float()
        if not bool(torch.isfinite(samples).all()):
            raise ValueError(f"{name}: contains values that are not finite (NaN or infinity)")
        if samples.numel() and (peak := float(samples.abs().max())) > MAX_PEAK:
            raise ValueError(
                f"{name}: peaks at {peak:g}; expected float in [-1, 1] (divide 16-bit integers by "
                "32768, or pass int16)"
            )
    if samples.ndim == 2:
        downmix = Downmix(name)
        samples = downmix(samples.T)
        downmix.check()
    rate = _checked_rate(sample_rate, name)
    if rate != SAMPLE_RATE:
        samples = samples.float() / 32768 if samples.dtype == torch.int16 else samples
        samples = resample_to_16k(samples, rate)
    # Files are clipped because they are read as 16-bit samples; arrays are clipped the same way.
    return samples if samples.dtype == torch.int16 else samples.clamp(-1, 1)


def _checked_rate(value: Any, name: str) -> int:
    """Return a sample rate as an integer; 44100.0 is accepted."""
    try:
        rate = float(value)
    except (TypeError, ValueError):
        rate = 0.0
    lowest, highest = SOURCE_RATES
    if not (lowest <= rate <= highest and rate.is_integer()):
        raise ValueError(
            f"{name}: sample rate {value} Hz is not supported; expected an integer from {lowest} "
            f"to {highest}"
        )
    return int(rate)
