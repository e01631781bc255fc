"""Make log-mel spectrograms audible: (B, T, 128) log-mel -> (B, L) waveforms at 16 kHz.

    log-mel (B, T, 128) -> power spectra (B, 257, T), smallest divergence from the mel energies
    -> pre-emphasis divided out -> phases by Griffin-Lim -> waveforms (B, L), L = 400 + 160 (T - 1)

The filterbank keeps neither phases nor the harmonics between its bands, so that speech sounds
hoarse. Sounds of a spectrogram are to be compared with the original after the same inversion.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F
from torchaudio.functional import griffinlim

from mae_ast.core.frontend.fbank import (
    FFT_LENGTH,
    FRAME_LENGTH,
    FRAME_SHIFT,
    PREEMPHASIS,
    filterbank,
    num_samples_of_frames,
)

SILENCE = math.log(torch.finfo(torch.float32).eps)  # log-mel of digital silence
SPECTRUM_STEPS = 30
PHASE_STEPS = 48
_SEED = 0  # of the first phases
_MIN_FRAMES = 4  # fewer than two windows of the FFT cannot be mirrored at the ends
_TINY = 1e-20


@torch.no_grad()
def to_waveforms(log_mel: Tensor, window_type: str = "povey") -> Tensor:
    """Invert log-mel spectrograms.

    Args:
        log_mel: (B, T, 128), not normalised; NaN is silence.
        window_type: window of the filterbank, "povey" or "hanning".

    Returns:
        (B, 400 + 160 (T - 1)) float32, with the level and timing of the recordings.
    """
    num_frames = log_mel.shape[1]
    log_mel = log_mel.float().cpu().nan_to_num(nan=SILENCE)
    log_mel = F.pad(log_mel, (0, 0, 0, max(0, _MIN_FRAMES - num_frames)), value=SILENCE)
    window, banks = filterbank(torch.device("cpu"), window_type)
    power = spectra(log_mel.exp(), banks) / preemphasis_response()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        # Frames are centred: the first one is at sample 0 here, at sample 200 in the recording.
        waves = griffinlim(
            power.transpose(1, 2),
            window,
            FFT_LENGTH,
            FRAME_SHIFT,
            FRAME_LENGTH,
            power=2.0,
            n_iter=PHASE_STEPS,
            momentum=0.99,
            length=FRAME_SHIFT * (log_mel.shape[1] - 1),
            rand_init=True,
        )
    waves = F.pad(waves, (FRAME_LENGTH // 2, FRAME_LENGTH - FRAME_LENGTH // 2))
    return waves[:, : num_samples_of_frames(num_frames)]


def spectra(energies: Tensor, banks: Tensor) -> Tensor:
    """Return power spectra with given mel energies: (B, T, 128) -> (B, T, 257).

    Multiplicative updates (Richardson-Lucy) keep them positive and fit quiet bands as closely as
    loud ones. Mel bands without a bin of the spectrum do not count.

    Args:
        energies: mel energies.
        banks: (128, 257) mel filters.
    """
    per_band, per_bin = banks.sum(1), banks.sum(0)
    used = per_band > 0
    banks, energies = banks[used], energies[..., used]
    weights = banks / per_bin.clamp(min=_TINY)
    found = (energies / per_band[used]) @ weights
    for _ in range(SPECTRUM_STEPS):
        ratio = energies / (found @ banks.T).clamp(min=_TINY)
        found = found * (ratio @ weights)
    return found


def preemphasis_response() -> Tensor:
    """Return the power response of the filterbank's pre-emphasis, (257,)."""
    angles = torch.linspace(0, math.pi, FFT_LENGTH // 2 + 1)
    return 1 - 2 * PREEMPHASIS * angles.cos() + PREEMPHASIS**2
