"""Test the compatibility patches for s3prl."""

from __future__ import annotations

import argparse
import importlib.util

import numpy as np
import pytest
import soundfile
import torch
import torchaudio
from torch.testing import assert_close

from mae_ast.superb import compat
from tests.sounds import speech_like

KS_EFFECTS = [["channels", "1"], ["rate", "16000"], ["gain", "-3.0"]]


def test_applies_the_effects_of_speech_commands(tmp_path):
    wave = speech_like(16_000)
    soundfile.write(tmp_path / "a.wav", wave.numpy(), 16_000, subtype="PCM_16")
    got, rate = compat.apply_effects_file(str(tmp_path / "a.wav"), KS_EFFECTS)
    pcm, _ = soundfile.read(tmp_path / "a.wav", dtype="int16")
    expected = torch.from_numpy(pcm / 32_768 * 10 ** (-3 / 20)).float().unsqueeze(0)
    assert rate == 16_000
    assert_close(got, expected, rtol=0, atol=1e-7)


def test_applies_channels_rate_norm_and_clipping(tmp_path):
    stereo = np.stack([speech_like(44_100, 1, 44_100), speech_like(44_100, 2, 44_100)], axis=1)
    soundfile.write(tmp_path / "a.flac", stereo, 44_100)
    effects = [["channels", "1"], ["rate", "16k".replace("k", "000")], ["norm"]]
    got, rate = compat.apply_effects_file(tmp_path / "a.flac", effects)
    assert (rate, got.shape) == (16_000, (1, 16_000))
    assert_close(got.abs().max().item(), 1.0)
    loud, _ = compat.apply_effects_tensor(got.T, rate, [["gain", "6"]], channels_first=False)
    assert loud.shape == (16_000, 1)
    assert loud.abs().max() == 1
    quiet, _ = compat.apply_effects_tensor(got, rate, [["norm", "-6"]])
    assert_close(quiet.abs().max().item(), 10 ** (-6 / 20))
    silent, _ = compat.apply_effects_tensor(torch.zeros(1, 100), rate, [["norm"]])
    assert not silent.any()


@pytest.mark.parametrize(
    "effect", [["vad", "-T", "0.25"], ["channels", "2"], ["gain", "-n"], ["silence", "1"]], ids=str
)
def test_rejects_an_unsupported_effect(effect):
    with pytest.raises(ValueError, match=f"sox effect '{' '.join(effect)}'"):
        compat.apply_effects_tensor(torch.zeros(1, 100), 16_000, [effect])


@pytest.fixture
def _bare(monkeypatch):
    """Restore the patched functions of torchaudio after the test."""
    for name in ("set_audio_backend", "info", "load", "sox_effects"):
        monkeypatch.setattr(torchaudio, name, getattr(torchaudio, name, None), raising=False)
        if getattr(torchaudio, name) is None:
            monkeypatch.delattr(torchaudio, name)


@pytest.mark.usefixtures("_bare")
def test_files_are_read_without_torchcodec(tmp_path, monkeypatch):
    monkeypatch.setattr(compat, "_can_import", lambda name: False)
    monkeypatch.delattr(torchaudio, "info", raising=False)
    compat.patch_audio_backend()
    compat.patch_audio_files()
    soundfile.write(tmp_path / "a.wav", np.zeros((100, 2)), 8_000, subtype="PCM_24")
    samples, rate = torchaudio.load(tmp_path / "a.wav", frame_offset=10, num_frames=50)
    assert (samples.shape, samples.dtype, rate) == ((2, 50), torch.float32, 8_000)
    header = torchaudio.info(str(tmp_path / "a.wav"))
    assert (header.num_frames, header.num_channels, header.sample_rate) == (100, 2, 8_000)
    assert header.bits_per_sample == 24
    torchaudio.set_audio_backend("sox_io")


@pytest.mark.usefixtures("_bare")
def test_existing_functions_are_not_replaced(monkeypatch):
    there = object()
    for name in ("set_audio_backend", "info", "load", "sox_effects"):
        monkeypatch.setattr(torchaudio, name, there, raising=False)
    monkeypatch.setattr(compat, "_can_import", lambda name: True)
    for name in ("audio_backend", "audio_files", "sox_effects", "catalyst", "librosa"):
        getattr(compat, f"patch_{name}")()
    names = ("set_audio_backend", "info", "load", "sox_effects")
    assert all(getattr(torchaudio, name) is there for name in names)


def test_safe_loading_only_allows_namespaces(tmp_path):
    compat.patch_safe_loading()
    torch.save({"Args": argparse.Namespace(a=1), "Step": 3}, tmp_path / "states.ckpt")
    assert torch.load(tmp_path / "states.ckpt")["Args"].a == 1
    torch.save({"Args": importlib.util.find_spec}, tmp_path / "bad.ckpt")
    with pytest.raises(Exception, match="Weights only load failed"):
        torch.load(tmp_path / "bad.ckpt")


def test_a_stand_in_names_the_package_to_install(monkeypatch):
    monkeypatch.setattr(compat, "_STAND_INS", set())
    monkeypatch.setattr("sys.modules", {**__import__("sys").modules})
    module = compat._new_module("no_such_package")
    assert importlib.util.find_spec("no_such_package") is module.__spec__
    with pytest.raises(AttributeError, match=r"no_such_package\.load: .*install no_such_package"):
        _ = module.load
