"""Kaldi log-mel filterbank of a whole batch: (B, L) samples -> (B, T, 128) float32.

25 ms windows every 10 ms, DC offset removed, pre-emphasis 0.97, power spectrum, no dither, no
energy. The values match ``torchaudio.compliance.kaldi.fbank(use_energy=False, num_mel_bins=128)``
within 1e-3 on any device. The order of operations is torchaudio's on purpose: folding the linear
steps into one matrix gives differences of up to 1.8e-3.

MAE-AST uses povey windows; SSAST, AST and Audio-MAE use hanning windows. The original
implementations of the latter also set ``htk_compat``, which only moves the energy, and subtract the
clip's mean, which has no effect because each frame's mean is removed.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F
from torchaudio.compliance.kaldi import get_mel_banks

from mae_ast.core.io.audio import SAMPLE_RATE

NUM_MEL_BINS = 128
FRAME_LENGTH = 400  # samples, 25 ms
FRAME_SHIFT = 160  # samples, 10 ms
FFT_LENGTH = 512
PREEMPHASIS = 0.97
LOW_FREQUENCY = 20.0  # Hz
WINDOW_POWERS = {"povey": 0.85, "hanning": 1.0}  # exponent of a Hann window

# On a CPU, frames are processed in blocks whose intermediate values fit the cache.
_CPU_BLOCK_FRAMES = 1024


def num_frames(num_samples: int) -> int:
    """Return the number of frames of a clip at 16 kHz; 0 if it is shorter than one window."""
    return max(0, 1 + (num_samples - FRAME_LENGTH) // FRAME_SHIFT)


def num_frames_of(num_samples: Tensor) -> Tensor:
    """Apply :func:`num_frames` to a (B,) int64 tensor."""
    return (1 + (num_samples - FRAME_LENGTH).div(FRAME_SHIFT, rounding_mode="floor")).clamp(min=0)


def num_samples_of_frames(frames: int) -> int:
    """Return the minimum number of samples at 16 kHz that gives ``frames`` frames."""
    return FRAME_LENGTH + (frames - 1) * FRAME_SHIFT


def fbank(waveform: Tensor, window_type: str = "povey") -> Tensor:
    """Compute the log-mel filterbank of a batch.

    Args:
        waveform: (B, L) int16, or float in [-1, 1], at 16 kHz. Padding on the right does not change
            the first ``num_frames(n)`` frames of a clip of n samples.
        window_type: "povey" or "hanning".

    Returns:
        (B, T, 128) float32 with T = 1 + (L - 400) // 160.

    Raises:
        ValueError: L is less than one window of 400 samples, or ``window_type`` is unknown.
    """
    length = waveform.shape[-1]
    if length < FRAME_LENGTH:
        raise ValueError(f"a clip of {length} samples is shorter than one window of {FRAME_LENGTH}")
    with torch.autocast(waveform.device.type, enabled=False):
        frames = waveform.unfold(-1, FRAME_LENGTH, FRAME_SHIFT)  # (B, T, 400), a view
        if waveform.device.type != "cpu":
            return log_mel_of_frames(frames, window_type)
        clips = min(max(len(frames), 1), 16)
        rows = [
            torch.cat(
                [
                    log_mel_of_frames(block, window_type)
                    for block in some.split(_CPU_BLOCK_FRAMES // clips, dim=1)
                ],
                1,
            )
            for some in frames.split(clips)
        ]
        return torch.cat(rows)


def fit_frames(spectrogram: Tensor, num_frames: Tensor | None, target: int) -> Tensor:
    """Crop or zero-pad log-mel (B, T, F) to (B, target, F), as the AST recipes do.

    Args:
        spectrogram: log-mel before normalisation, where 0 is a high level, not silence.
        num_frames: (B,) int64, valid frames of each clip; ``None``: all.
        target: number of frames of the result.
    """
    fitted = F.pad(spectrogram[:, :target], (0, 0, 0, max(0, target - spectrogram.shape[1])))
    if num_frames is None:
        return fitted
    valid = torch.arange(target, device=fitted.device) < num_frames[:, None]
    return fitted.where(valid[:, :, None], 0.0)


def log_mel_of_frames(frames: Tensor, window_type: str) -> Tensor:
    """Compute log-mel energies: (..., 400) samples -> (..., 128)."""
    window, mel_banks = filterbank(frames.device, window_type)
    if frames.dtype == torch.int16:
        frames = frames.float() / 32768.0
    frames = frames.float()
    frames = frames - frames.mean(dim=-1, keepdim=True)
    first = frames[..., :1]
    frames = frames - PREEMPHASIS * torch.cat((first, frames[..., :-1]), dim=-1)
    spectrum = torch.fft.rfft(frames * window, n=FFT_LENGTH)
    # abs().square(), not real^2 + imag^2, to round as torchaudio does.
    energies = F.linear(spectrum.abs().square_(), mel_banks)
    return energies.clamp_(min=torch.finfo(torch.float32).eps).log_()


@lru_cache(maxsize=8)
def filterbank(device: torch.device, window_type: str = "povey") -> tuple[Tensor, Tensor]:
    """Return the window (400,) and the mel matrix (128, 257) on ``device``; do not change them."""
    if window_type not in WINDOW_POWERS:
        raise ValueError(f"window {window_type!r}; must be one of {', '.join(WINDOW_POWERS)}")
    window = torch.hann_window(FRAME_LENGTH, periodic=False).pow(WINDOW_POWERS[window_type])
    banks, _ = get_mel_banks(
        NUM_MEL_BINS, FFT_LENGTH, float(SAMPLE_RATE), LOW_FREQUENCY, 0.0, 100.0, -500.0, 1.0
    )
    return window.to(device), F.pad(banks, (0, 1)).to(device)  # no filter covers the Nyquist bin
