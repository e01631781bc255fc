"""Sounds of a page: waveforms (L,) at 16 kHz as Ogg/Opus in ``data:`` URIs, each stored once."""

from __future__ import annotations

import base64
import io
from collections.abc import Hashable

import soundfile
import torch
from torch import Tensor

from mae_ast.core.io.audio import SAMPLE_RATE

PEAK = 0.5  # of a recording; leaves room for what is louder after the inversion
MAX_GAIN = 30.0  # for recordings that are nearly silent


class Sounds:
    """Collect the sounds of a page; each has a number, and equal keys share one."""

    def __init__(self) -> None:
        self.uris: list[str] = []
        self._numbers: dict[Hashable, int] = {}

    def add(self, waveform: Tensor, key: Hashable = None) -> int:
        """Encode a waveform, (L,) int16 or float in [-1, 1], and return its number.

        Args:
            waveform: samples at 16 kHz.
            key: a second sound of this key is the first one; ``None``: it has no key.
        """
        if key is not None and key in self._numbers:
            return self._numbers[key]
        self.uris.append(as_uri(waveform))
        number = len(self.uris) - 1
        if key is not None:
            self._numbers[key] = number
        return number


def gain_of(waveform: Tensor) -> float:
    """Return the factor that brings a recording's peak to ``PEAK``."""
    peak = float(as_float(waveform).abs().max()) if len(waveform) else 0.0
    return min(PEAK / peak, MAX_GAIN) if peak > 0 else 1.0


def as_float(waveform: Tensor) -> Tensor:
    """Convert int16 to float in [-1, 1]."""
    return waveform / 32768.0 if waveform.dtype == torch.int16 else waveform.float()


def as_uri(waveform: Tensor) -> str:
    """Encode a waveform as Ogg/Opus, 4.5 kB a second."""
    file = io.BytesIO()
    samples = as_float(waveform).clamp(-1, 1).cpu().numpy()
    soundfile.write(file, samples, SAMPLE_RATE, format="OGG", subtype="OPUS")
    return f"data:audio/ogg;base64,{base64.b64encode(file.getvalue()).decode()}"
