"""Sounds in data URIs."""

from __future__ import annotations

import base64
import io

import pytest
import soundfile
import torch

from mae_ast.report.sounds import MAX_GAIN, Sounds, as_uri, gain_of
from tests.sounds import pcm16, speech_like


def decoded(uri: str) -> torch.Tensor:
    head, data = uri.split(",")
    assert head == "data:audio/ogg;base64"
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(data)), dtype="float32")
    assert rate == 16_000
    return torch.from_numpy(samples)


def test_a_sound_keeps_its_length_and_level():
    wave = speech_like(16_000)
    back = decoded(as_uri(pcm16(wave)))
    assert len(back) == 16_000
    assert back.square().mean() == pytest.approx(wave.square().mean().item(), rel=0.1)


def test_a_second_of_sound_has_less_than_8_kb():
    """So that the 300 s of labelled clips have less than 2.4 MB."""
    assert len(as_uri(0.1 * torch.randn(32_000))) < 2 * 8000


def test_equal_keys_share_a_sound():
    sounds, wave = Sounds(), torch.zeros(1600)
    assert [
        sounds.add(wave, "a"),
        sounds.add(wave, "b"),
        sounds.add(wave, "a"),
        sounds.add(wave),
    ] == [0, 1, 0, 2]
    assert len(sounds.uris) == 3


def test_gain_brings_the_peak_to_a_half():
    assert gain_of(torch.tensor([0, -8192], dtype=torch.int16)) == 2.0
    assert gain_of(torch.tensor([1e-4])) == MAX_GAIN
    assert gain_of(torch.zeros(5)) == 1.0
