"""Waveforms and audio files for tests."""

from __future__ import annotations

import math
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor


def speech_like(num_samples: int, seed: int = 0, rate: int = 16_000) -> Tensor:
    """(L,) float32 in [-1, 1]: a voice of gliding pitch, hiss and pauses, in turns of 80 ms."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(num_samples) / rate
    turn = (time / 0.08).long()
    turns = int(turn.max()) + 1
    pitch = 90 + 160 * torch.rand(turns, generator=generator)[turn]
    phase = 2 * math.pi * torch.cumsum(pitch / rate, dim=0)
    voice = sum(torch.sin(k * phase) / k for k in range(1, 20))
    hiss = torch.randn(num_samples, generator=generator)
    kind = torch.randint(4, (turns,), generator=generator)[turn]  # 0 a pause, 1 hiss, 2 and 3 voice
    wave = torch.where(kind >= 2, 0.25 * voice, torch.where(kind == 1, 0.05 * hiss, 0.0))
    return (wave + 1e-4 * hiss).clamp(-1, 1)


def pcm16(wave: Tensor) -> Tensor:
    """Float in [-1, 1] to int16."""
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
    """Write (L, channels) int16 samples.

    Args:
        path: the file.
        codec: FFmpeg's name of it.
        samples: what is written.
        rate: of the samples, in Hz.
        title: a tag.
        container: FFmpeg's name of it; default: what the suffix names.
        options: of the container.
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
