"""Channels are averaged; where they cancel each other, one warning names the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from mae_ast.core.io.audio import read_audio, stream_audio
from mae_ast.core.io.decoding import audio_file
from tests.sounds import pcm16, speech_like, write_with_av


@pytest.fixture(autouse=True)
def _nothing_warned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio_file, "_warned", set())


def stereo(path: Path, right: float, dtype: str = "int16") -> Path:
    """2 s at 16 kHz, the right channel being ``right`` times the left one."""
    left = pcm16(speech_like(32_000, 1)).numpy().astype(float) / 32768
    values = np.stack([left, right * left], axis=1)
    if path.suffix == ".mkv":
        write_with_av(path, "flac", (values * 32767).astype(np.int16), 16_000)
    else:
        soundfile.write(path, values, 16_000, {"int16": "PCM_16", "float": "FLOAT"}[dtype])
    return path


@pytest.mark.parametrize(("name", "dtype"), [("a.wav", "int16"), ("a.wav", "float"), ("a.mkv", "")])
def test_channels_in_opposite_phase_are_warned_about_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, dtype: str
) -> None:
    path = stereo(tmp_path / name, -1.0, dtype)
    for start in (0, 8_000):
        assert read_audio(path, start, 16_000).abs().max() <= 1
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith(f"{path}: its channels are in opposite phase and average to silence")


@pytest.mark.parametrize("right", [1.0, 0.0, -0.9])
def test_channels_that_leave_something_are_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, right: float
) -> None:
    left = pcm16(speech_like(32_000, 1)).float()
    samples = read_audio(stereo(tmp_path / "a.wav", right))
    torch.testing.assert_close(samples.float(), left * (1 + right) / 2, atol=1.0, rtol=0)
    soundfile.write(tmp_path / "silence.wav", np.zeros((16_000, 2)), 16_000)
    assert not read_audio(tmp_path / "silence.wav").any()
    assert not caplog.records


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_blocks_of_a_stream_are_the_file(tmp_path: Path, rate: int) -> None:
    samples = pcm16(speech_like(70 * rate, 2, rate)).numpy()
    soundfile.write(tmp_path / "a.flac", samples, rate)
    blocks = stream_audio(tmp_path / "a.flac", list)
    assert len(blocks) > 1
    assert all(block.dtype == torch.int16 for block in blocks)
    assert torch.equal(torch.cat(blocks), read_audio(tmp_path / "a.flac"))
