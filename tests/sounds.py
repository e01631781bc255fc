"""Create waveforms and audio files for tests."""

from __future__ import annotations

import math
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor


def speech_like(num_samples: int, seed: int = 0, rate: int = 16_000) -> Tensor:
    """Return (L,) float32 in [-1, 1] that alternates voiced, noise and silent segments of 80 ms."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(num_samples) / rate
    turn = (time / 0.08).long()
    turns = int(turn.max()) + 1
    pitch = 90 + 160 * torch.rand(turns, generator=generator)[turn]
    phase = 2 * math.pi * torch.cumsum(pitch / rate, dim=0)
    voice = sum(torch.sin(k * phase) / k for k in range(1, 20))
    hiss = torch.randn(num_samples, generator=generator)
    kind = torch.randint(4, (turns,), generator=generator)[turn]  # 0 silence, 1 noise, 2, 3 voiced
    wave = torch.where(kind >= 2, 0.25 * voice, torch.where(kind == 1, 0.05 * hiss, 0.0))
    return (wave + 1e-4 * hiss).clamp(-1, 1)


def pcm16(wave: Tensor) -> Tensor:
    """Convert float in [-1, 1] to int16."""
    return (wave * 32767).round().to(torch.int16)


def write_with_av(
    path: Path,
    codec: str,
    samples: np.ndarray,
    rate: int,
    title: str = "",
    container: str | None = None,
    **options: str,
) -> None:
    """Write (L, channels) int16 samples with PyAV.

    Args:
        path: path of the file.
        codec: FFmpeg's name of the codec.
        samples: (L, channels) int16, 1 or 2 channels.
        rate: sample rate in Hz.
        title: value of the title tag; empty writes no tag.
        container: FFmpeg's name of the container; default: chosen by the suffix.
        options: options of the container.
    """
    layout = {1: "mono", 2: "stereo"}[samples.shape[1]]
    with av.open(str(path), "w", format=container, options=options) as output:
        if title:
            output.metadata["title"] = title
        stream = output.add_stream(codec, rate=rate)
        stream.layout = layout
        stream.codec_context.options = {"strict": "experimental"}
        packed = np.ascontiguousarray(samples).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(packed, format="s16", layout=layout)
        frame.sample_rate = rate
        frame.pts = 0
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
