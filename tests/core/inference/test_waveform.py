"""Synthesis of waveforms from log-mel spectrograms."""

from __future__ import annotations

import torch

from mae_ast.core.frontend.fbank import fbank
from mae_ast.core.frontend.input_norm import InputNorm
from mae_ast.core.inference.waveform import waveform_of
from tests.sounds import speech_like


def test_the_filterbank_of_the_waveform_is_the_given_one() -> None:
    sounds = torch.stack([speech_like(16_000), speech_like(16_000).flip(0)])
    given = fbank(sounds)
    waves = waveform_of(given)
    assert waves.shape == (2, 15_920)  # 98 frames
    assert torch.allclose(waves.abs().amax(1), torch.full((2,), 0.9))
    assert torch.equal(waves, waveform_of(given))
    found = fbank(waves)
    is_loud = given > given.amax((1, 2), keepdim=True) - 7  # 30 dB
    level = ((found - given) * is_loud).sum((1, 2), keepdim=True) / is_loud.sum((1, 2), True)
    error = ((found - given - level).abs() * is_loud).sum() / is_loud.sum()
    spread = (given - given.mean((1, 2), keepdim=True))[is_loud].std()
    assert error < 0.35, error  # nats
    assert spread > 1.2  # error of a constant


def test_silence_is_synthesised_as_silence_without_nan() -> None:
    waves = waveform_of(fbank(torch.zeros(1, 4_000)))
    assert waves.isfinite().all()


def test_normalisation_is_inverted() -> None:
    norm = InputNorm(mean=-6.0, std=3.0).eval()
    log_mel = torch.randn(2, 5, 128) * 4 - 5
    assert torch.allclose(norm.invert(norm(log_mel)), log_mel, atol=1e-5)
