"""The filterbank equals torchaudio's, for single clips and batches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torchaudio.compliance import kaldi

from mae_ast.core.frontend.fbank import fbank, num_frames, num_frames_of, num_samples_of_frames
from tests.sounds import pcm16, speech_like

WINDOW = 400  # samples, 25 ms


def torchaudio_fbank(wave: Tensor) -> Tensor:
    return kaldi.fbank(
        wave.unsqueeze(0), sample_frequency=16_000, use_energy=False, num_mel_bins=128
    )


def full_scale(num_samples: int) -> Tensor:
    return torch.sign(torch.sin(torch.arange(num_samples) * 0.031) + 1e-6)


WAVES = {
    "speech": speech_like(32_000),
    "silence": torch.zeros(8_000),
    "full scale": full_scale(16_000),
    "a constant": torch.full((8_000,), 0.7),
    "least significant bit": torch.full((8_000,), 1 / 32768) * (torch.arange(8_000) % 2),
    "25 ms": speech_like(WINDOW, seed=1),
    "longer than a block of frames": speech_like(16 * 16_000, seed=2),
}


@pytest.mark.parametrize("name", WAVES)
def test_equals_torchaudio(name):
    wave = WAVES[name]
    assert_close(fbank(wave.unsqueeze(0))[0], torchaudio_fbank(wave), rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", WAVES)
def test_int16_equals_torchaudio_on_the_same_samples(name):
    samples = pcm16(WAVES[name])
    ours = fbank(samples.unsqueeze(0))[0]
    assert ours.dtype == torch.float32
    assert_close(ours, torchaudio_fbank(samples.float() / 32768), rtol=0, atol=1e-3)
    assert torch.equal(ours, fbank(samples.unsqueeze(0).float() / 32768)[0])


@pytest.mark.parametrize("batch_size", [2, 21])
def test_batch_equals_single_clips(batch_size):
    waves = torch.stack([speech_like(20_000, seed) for seed in range(batch_size)])
    together = fbank(waves)
    assert together.shape == (batch_size, 123, 128)
    for wave, ours in zip(waves, together, strict=True):
        assert_close(ours, torchaudio_fbank(wave), rtol=0, atol=1e-3)


@pytest.mark.parametrize("length", [WINDOW, 559, 560, 7_999])
def test_padding_does_not_change_the_frames_of_a_clip(length):
    wave = speech_like(length, seed=3)
    padded = torch.stack((torch.nn.functional.pad(wave, (0, 16_000 - length)), speech_like(16_000)))
    own = torchaudio_fbank(wave)
    assert_close(fbank(padded)[0, : len(own)], own, rtol=0, atol=1e-3)
    assert len(own) == num_frames(length)


@pytest.mark.parametrize("length", [0, 1, WINDOW - 1])
def test_clip_shorter_than_a_window_is_refused(length):
    with pytest.raises(ValueError, match=f"{length} samples is shorter than one window of 400"):
        fbank(torch.zeros(1, length))


def test_output_is_float32_under_autocast():
    wave = speech_like(16_000).unsqueeze(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = fbank(wave)
    assert ours.dtype == torch.float32
    assert torch.equal(ours, fbank(wave))


@pytest.mark.parametrize(
    ("samples", "frames"), [(0, 0), (399, 0), (400, 1), (559, 1), (560, 2), (160_000, 998)]
)
def test_number_of_frames(samples, frames):
    assert num_frames(samples) == frames
    assert num_frames_of(torch.tensor([samples])).tolist() == [frames]


@pytest.mark.parametrize("frames", [1, 2, 16, 998])
def test_num_samples_of_frames_is_minimal(frames):
    samples = num_samples_of_frames(frames)
    assert num_frames(samples) == frames
    assert num_frames(samples - 1) == frames - 1
