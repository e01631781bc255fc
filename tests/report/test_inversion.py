"""Inversion of log-mel spectrograms to waveforms."""

from __future__ import annotations

import math

import pytest
import torch

from mae_ast.core.frontend.fbank import fbank, filterbank
from mae_ast.report.inversion import SILENCE, spectra, to_waveforms
from tests.sounds import speech_like


def tone(pitch: float, samples: int = 16_000) -> torch.Tensor:
    return 0.2 * torch.sin(2 * math.pi * pitch * torch.arange(samples) / 16_000)


def rms(wave: torch.Tensor) -> float:
    return wave.square().mean().sqrt().item()


@pytest.mark.parametrize("window", ["povey", "hanning"])
@pytest.mark.parametrize("pitch", [220.0, 1000.0, 3000.0])
def test_a_tone_comes_back_with_its_frequency_and_level(pitch, window):
    wave = tone(pitch)
    back = to_waveforms(fbank(wave[None], window), window)[0]
    middle = back[2000:14_000]
    spectrum = torch.fft.rfft(middle * torch.hann_window(len(middle))).abs()
    assert spectrum.argmax().item() * 16_000 / len(middle) == pytest.approx(pitch, abs=8)
    assert rms(middle) == pytest.approx(rms(wave), rel=0.05)


def test_the_log_mel_of_the_inversion_is_that_of_the_original():
    wave = speech_like(32_000, seed=1)[None]
    log_mel = fbank(wave)
    back = to_waveforms(log_mel)
    assert back.shape == (1, 400 + 160 * (log_mel.shape[1] - 1))
    error = (fbank(back) - log_mel)[0, 3:-3].abs()
    assert error.median() < 0.3  # nats; the values span 15
    assert rms(back) == pytest.approx(rms(wave), rel=0.1)


def test_a_burst_comes_back_at_its_time_and_silence_stays_silent():
    wave = torch.zeros(32_000)
    wave[12_000:12_800] = 0.3 * torch.randn(800)
    back = to_waveforms(fbank(wave[None]))[0]
    energy = back[: 199 * 160].view(-1, 160).square().sum(1)
    middle = (energy * torch.arange(len(energy))).sum() / energy.sum()
    assert middle * 160 == pytest.approx(12_320, abs=160)
    assert rms(back[:8000]) < 0.01 * rms(back)


def test_masked_cells_are_silent():
    log_mel = fbank(tone(1000.0)[None])
    hidden = log_mel.clone()
    hidden[:, 40:] = math.nan
    back = to_waveforms(hidden)[0]
    assert back.isfinite().all()
    assert rms(back[9000:]) < 1e-3 < 0.1 < rms(back[1000:5000])


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_short_spectrograms_are_inverted(frames):
    back = to_waveforms(torch.full((2, frames, 128), -3.0))
    assert back.shape == (2, 400 + 160 * (frames - 1))
    assert back.isfinite().all()


def test_spectra_fit_loud_and_quiet_bands_alike():
    log_mel = fbank(speech_like(16_000)[None])
    _, banks = filterbank(torch.device("cpu"))
    power = spectra(log_mel.exp(), banks)
    assert power.min() >= 0
    fitted = (power @ banks.T).clamp(min=math.exp(SILENCE)).log()
    assert (fitted - log_mel).abs().mean() < 0.05


def test_inversion_repeats_and_leaves_the_random_state():
    log_mel = fbank(speech_like(8000)[None])
    state = torch.get_rng_state()
    assert torch.equal(to_waveforms(log_mel), to_waveforms(log_mel))
    assert torch.equal(torch.get_rng_state(), state)
