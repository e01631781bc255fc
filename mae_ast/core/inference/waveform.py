"""Make log-mel spectrograms audible: (B, T, 128) -> (B, L) float32 at 16 kHz.

The filterbank keeps neither phase nor the spectrum below its resolution. A non-negative spectrum
with these mel energies is fitted, and Griffin & Lim's algorithm ("Signal estimation from modified
short-time Fourier transform", 1984, in the fast version of Perraudin et al. 2013) finds a phase.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchaudio import functional

from mae_ast.core.frontend.fbank import (
    FFT_LENGTH,
    FRAME_LENGTH,
    FRAME_SHIFT,
    PREEMPHASIS,
    filterbank,
)

FITTING_STEPS = 50
PEAK = 0.9


@torch.no_grad()
def waveform_of(log_mel: Tensor, steps: int = 32) -> Tensor:
    """Synthesise waveforms whose filterbank is close to the given one.

    Args:
        log_mel: (B, T, 128) log-mel energies, not normalised: see
            :meth:`mae_ast.core.frontend.input_norm.InputNorm.invert`.
        steps: iterations of Griffin & Lim's algorithm.

    Returns:
        (B, L) with L = 400 + 160 (T - 1), scaled to a peak of 0.9.
    """
    window, mel_banks = filterbank(log_mel.device)
    power = _spectrum(log_mel.float().exp(), mel_banks)  # (B, T, 257)
    synthesised = functional.griffinlim(
        power.transpose(1, 2),
        window=window,
        n_fft=FFT_LENGTH,
        hop_length=FRAME_SHIFT,
        win_length=FRAME_LENGTH,
        power=2.0,
        n_iter=steps,
        momentum=0.99,
        length=FRAME_SHIFT * (log_mel.shape[1] - 1),
        rand_init=False,  # the same result each time
    )
    # Its first frame is centred on sample 0, that of the filterbank begins there.
    half = FRAME_LENGTH // 2
    waves: Tensor = functional.deemphasis(
        torch.nn.functional.pad(synthesised, (half, half)), PREEMPHASIS
    )
    peak: Tensor = waves.abs().amax(1, keepdim=True).clamp(min=1e-8)
    return waves * (PEAK / peak)


def _spectrum(mel: Tensor, mel_banks: Tensor) -> Tensor:
    """Fit a power spectrum (B, T, 257) >= 0 to mel energies (B, T, 128).

    Multiplicative updates for non-negative least squares (Lee & Seung 2001).
    """
    target = mel @ mel_banks
    gram = mel_banks.T @ mel_banks
    spectrum = target.clone()
    for _ in range(FITTING_STEPS):
        spectrum *= target / (spectrum @ gram).clamp(min=torch.finfo(torch.float32).tiny)
    return spectrum
