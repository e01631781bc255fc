"""Files of many formats are read as 16 kHz mono samples, whole or in part."""

from __future__ import annotations

import gc
import math
import os
from multiprocessing import get_context
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor
from torchaudio.functional import resample

from mae_ast.core.io.audio import (
    SAMPLE_RATE,
    AudioError,
    AudioInfo,
    num_samples_16k,
    probe_audio,
    probe_rate,
    read_audio,
    resample_to_16k,
    to_pcm16,
)
from mae_ast.core.io.decoding import resample as resample_module
from tests.sounds import pcm16, speech_like, write_with_av

SECONDS = 1.3


def wave_at(rate: int, seed: int = 0) -> Tensor:
    """Return (L,) int16, below 3 kHz so that lossy codecs preserve most of it."""
    time = torch.arange(round(SECONDS * rate)) / rate
    tones = [(0.3, 220.0), (0.2, 700.0), (0.1, 2_900.0)]
    wave = sum(a * torch.sin(2 * math.pi * f * time + seed) for a, f in tones)
    return pcm16(wave * torch.sin(math.pi * time / SECONDS))


# suffix, soundfile's subtype, rates
BY_SOUNDFILE = [
    *((".flac", "PCM_16", rate) for rate in (8_000, 16_000, 22_050, 44_100, 48_000)),
    (".flac", "PCM_24", 16_000),
    *((".wav", "PCM_16", rate) for rate in (8_000, 16_000, 22_050, 44_100, 48_000)),
    *((".wav", subtype, 16_000) for subtype in ("PCM_24", "PCM_32", "FLOAT", "DOUBLE", "PCM_U8")),
    *((".wav", subtype, 44_100) for subtype in ("PCM_24", "FLOAT")),
    *((".ogg", "VORBIS", rate) for rate in (16_000, 44_100)),
    *((".ogg", "OPUS", rate) for rate in (16_000, 48_000)),
    *((".mp3", "MPEG_LAYER_III", rate) for rate in (16_000, 44_100, 48_000)),
]
# suffix, codec, rate
BY_PYAV = [
    *((".mkv", "flac", rate) for rate in (16_000, 22_050, 48_000)),
    *((".mkv", "pcm_s16le", rate) for rate in (8_000, 16_000, 44_100)),
    *((suffix, "aac", rate) for suffix in (".mp4", ".m4a") for rate in (16_000, 44_100)),
    (".webm", "libopus", 48_000),
]
BOTH = pytest.mark.parametrize("use", [read_audio, probe_audio])
LOSSLESS = {"PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "flac", "pcm_s16le"}
ALL = [*BY_SOUNDFILE, *BY_PYAV]
ALL_IDS = [f"{suffix[1:]}-{coding}-{rate}" for suffix, coding, rate in ALL]
EACH_KIND = pytest.mark.parametrize(("suffix", "coding", "rate"), ALL, ids=ALL_IDS)


def write(path: Path, coding: str, samples: Tensor, rate: int) -> Path:
    """Write (L,) or (L, channels) int16; soundfile's subtypes are in capitals."""
    columns = samples.view(len(samples), -1).numpy()
    if coding in ("FLOAT", "DOUBLE"):
        columns = columns / 32768
    if coding.isupper():
        soundfile.write(path, columns, rate, subtype=coding)
    else:
        write_with_av(path, coding, columns, rate)
    return path


def at_16k(samples: Tensor, rate: int) -> Tensor:
    """Return the samples that a lossless file must decode to."""
    wave = samples.float() / 32768
    return to_pcm16(resample(wave, rate, SAMPLE_RATE) if rate != SAMPLE_RATE else wave)


def assert_within(ours: Tensor, expected: Tensor, steps: int) -> None:
    assert ours.dtype == torch.int16
    assert ours.shape == expected.shape
    assert (ours.int() - expected.int()).abs().max() <= steps


def assert_close_in_energy(ours: Tensor, expected: Tensor, share: float) -> None:
    length = min(len(ours), len(expected))
    error = (ours[:length].float() - expected[:length].float()).norm()
    assert error < share * expected.float().norm()


@EACH_KIND
def test_decodes_every_format(tmp_path, suffix, coding, rate):
    samples = wave_at(rate)
    ours = read_audio(write(tmp_path / f"a{suffix}", coding, samples, rate))
    expected = at_16k(samples, rate)
    if coding in LOSSLESS:
        assert_within(ours, expected, 0 if rate == SAMPLE_RATE else 1)
    else:
        assert ours.dtype == torch.int16
        # A decoder may also return the padding of its last block.
        assert len(expected) <= len(ours) <= len(expected) + 1_152
        assert_close_in_energy(ours, expected, 0.15)


def assert_parts_equal_slices(path: Path, parts: list[tuple[int, int | None]]) -> None:
    whole = read_audio(path)
    for start, length in parts:
        expected = whole[start:] if length is None else whole[start : start + length]
        assert_within(read_audio(path, start, length), expected, 1)


@EACH_KIND
def test_part_equals_slice_of_the_whole(tmp_path, suffix, coding, rate):
    path = write(tmp_path / f"a{suffix}", coding, wave_at(rate), rate)
    end = len(read_audio(path))
    parts: list[tuple[int, int | None]] = [(0, 1), (0, 5_000), (0, 10 * end)]
    if suffix != ".mp3":
        parts += [(1, 400), (7_777, 4_321), (12_345, None), (5, None)]
        parts += [(end - 50, 50), (end - 50, 1_000), (end - 1, None)]
    assert_parts_equal_slices(path, parts)


@pytest.mark.parametrize(
    ("suffix", "coding", "rate"),
    [
        (".wav", "PCM_16", 44_100),
        (".flac", "PCM_16", 48_000),
        (".mp3", "MPEG_LAYER_III", 44_100),
        (".ogg", "VORBIS", 16_000),
        (".ogg", "OPUS", 48_000),
        (".mkv", "flac", 48_000),
    ],
)
def test_any_part_of_a_longer_file_equals_its_slice(tmp_path, suffix, coding, rate):
    path = write(tmp_path / f"a{suffix}", coding, wave_at(rate).repeat(4), rate)
    end = len(read_audio(path))
    assert_parts_equal_slices(path, [(start, 2_000) for start in range(0, end - 2_000, 2_997)])


@pytest.mark.parametrize(
    ("suffix", "coding"),
    [(".wav", "PCM_16"), (".flac", "PCM_16"), (".mkv", "flac"), (".mkv", "pcm_s16le")],
)
def test_16_khz_mono_16_bit_is_bit_exact(tmp_path, suffix, coding):
    samples = torch.randint(-32768, 32768, (9_000,)).to(torch.int16)
    samples[:2] = torch.tensor([-32768, 32767])
    path = write(tmp_path / f"a{suffix}", coding, samples, 16_000)
    assert torch.equal(read_audio(path), samples)
    assert torch.equal(read_audio(path, 123, 4_000), samples[123:4_123])


@pytest.mark.parametrize(
    ("suffix", "coding", "rate"),
    [
        (".wav", "PCM_16", 16_000),
        (".flac", "PCM_16", 44_100),
        (".wav", "FLOAT", 48_000),
        (".mkv", "flac", 16_000),
        (".mkv", "pcm_s16le", 44_100),
    ],
)
def test_channels_are_averaged(tmp_path, suffix, coding, rate):
    left, right = wave_at(rate), wave_at(rate, seed=2)
    path = write(tmp_path / f"a{suffix}", coding, torch.stack((left, right), dim=1), rate)
    mean = (left.float() + right.float()) / 2 / 32768
    expected = to_pcm16(resample(mean, rate, SAMPLE_RATE) if rate != SAMPLE_RATE else mean)
    steps = 0 if rate == SAMPLE_RATE else 1
    assert_within(read_audio(path), expected, steps)
    assert_within(read_audio(path, 3_000, 2_000), expected[3_000:5_000], steps)


@pytest.mark.parametrize(("suffix", "codec"), [(".m4a", "aac"), (".webm", "libopus")])
def test_channels_of_lossy_files_are_averaged(tmp_path, suffix, codec):
    left, right = wave_at(48_000), wave_at(48_000, seed=2)
    path = write(tmp_path / f"a{suffix}", codec, torch.stack((left, right), dim=1), 48_000)
    mean = (left.float() + right.float()) / 2 / 32768
    expected = to_pcm16(resample(mean, 48_000, SAMPLE_RATE))
    assert_close_in_energy(read_audio(path), expected, 0.15)


@pytest.mark.parametrize("rate", [8_000, 44_100, 48_000])
def test_resampling_equals_torchaudio_and_caches_the_kernel(rate, monkeypatch):
    resample_module._resampler.cache_clear()
    wave = speech_like(rate)
    for _ in range(2):
        assert torch.equal(resample_to_16k(wave, rate), resample(wave, rate, SAMPLE_RATE))
    assert resample_module._resampler.cache_info().misses == 1


def test_resampled_tone_keeps_frequency_and_amplitude(tmp_path):
    for rate in (8_000, 22_050, 44_100, 48_000):
        time = torch.arange(2 * rate) / rate
        path = tmp_path / f"{rate}.wav"
        soundfile.write(path, (0.5 * torch.sin(2 * math.pi * 1_000 * time)).numpy(), rate)
        wave = read_audio(path).float() / 32768
        expected = 0.5 * torch.sin(2 * math.pi * 1_000 * torch.arange(32_000) / 16_000)
        assert wave.shape == expected.shape
        assert (wave - expected)[200:-200].abs().max() < 2e-3


@pytest.mark.parametrize("rate", [11_127, 15_999, 22_254, 44_056])
def test_resamples_rates_with_large_ratio_terms(tmp_path, rate):
    time = torch.arange(3 * rate) / rate
    path = tmp_path / "a.wav"
    soundfile.write(path, (0.5 * torch.sin(2 * math.pi * 500 * time)).numpy(), rate)
    whole = read_audio(path)
    expected = 0.5 * torch.sin(2 * math.pi * 500 * torch.arange(48_000) / 16_000)
    assert whole.shape == expected.shape
    assert (whole.float() / 32768 - expected)[200:-200].abs().max() < 2e-3
    assert_parts_equal_slices(path, [(n, 2_000) for n in range(0, 46_000, 4_999)])


@BOTH
@pytest.mark.parametrize("rate", [500, 1_000_000])
def test_unsupported_sample_rates_are_refused(tmp_path, rate, use):
    path = tmp_path / "odd rate.wav"
    soundfile.write(path, np.zeros(4_000, np.int16), rate)
    with pytest.raises(AudioError, match=rf"odd rate\.wav: sample rate {rate} Hz"):
        use(path)


def test_values_beyond_full_scale_are_clipped(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.float32([2.0, -2.0, 1.0, 0.5]), 16_000, subtype="FLOAT")
    assert read_audio(tmp_path / "a.wav").tolist() == [32767, -32768, 32767, 16384]


def test_to_pcm16_rounds_to_nearest():
    wave = torch.tensor([0.0, 0.49, 0.51, -0.51, 32766.6, -40000.0]) / 32768
    assert to_pcm16(wave).tolist() == [0, 0, 1, -1, 32767, -32768]


@EACH_KIND
def test_probe_returns_rate_and_length(tmp_path, suffix, coding, rate):
    samples = wave_at(rate)
    path = write(tmp_path / f"a{suffix}", coding, samples, rate)
    info = probe_audio(path)
    assert info.sample_rate == probe_rate(path) == (48_000 if coding == "OPUS" else rate)
    if (suffix, coding, rate) in BY_SOUNDFILE:
        assert info.num_frames == len(samples) * info.sample_rate // rate
    else:  # containers count in milliseconds, and may include encoder delay and padding
        slack = 0.001 * rate if coding in LOSSLESS else 1_024
        assert abs(info.num_frames - len(samples)) <= slack
    decoded = len(read_audio(path))
    promised = num_samples_16k(info.num_frames, info.sample_rate)
    assert abs(decoded - promised) <= (16 if coding in LOSSLESS else 1_200)


@pytest.mark.parametrize(
    ("frames", "rate", "expected"),
    [
        (16_000, 16_000, 16_000),
        (1, 8_000, 2),
        (3, 48_000, 1),
        (4, 48_000, 2),
        (44_100, 44_100, 16_000),
        (441_001, 44_100, 160_001),
        (2**40, 44_100, -(-(2**40) * 160 // 441)),
    ],
)
def test_num_samples_16k_rounds_up(frames, rate, expected):
    assert num_samples_16k(frames, rate) == expected


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 32_000, 44_100, 48_000])
@pytest.mark.parametrize("frames", [1_000, 1_001, 4_799])
def test_num_samples_16k_equals_decoded_length(tmp_path, rate, frames):
    path = tmp_path / "a.wav"
    soundfile.write(path, speech_like(frames).numpy(), rate)
    assert len(read_audio(path)) == num_samples_16k(frames, rate)


# -- unusable files -----------------------------------------------------------------------------

SUFFIXES = (".flac", ".wav", ".ogg", ".mp3", ".mkv", ".mp4", ".m4a", ".webm")


@BOTH
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_missing_file_is_reported(tmp_path, suffix, use):
    path = tmp_path / f"missing{suffix}"
    with pytest.raises(FileNotFoundError, match=f"missing{suffix}"):
        use(path)


@BOTH
def test_folder_is_reported_as_missing_file(tmp_path, use):
    folder = tmp_path / "folder.wav"
    folder.mkdir()
    with pytest.raises(FileNotFoundError, match=r"folder\.wav"):
        use(folder)


@BOTH
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_empty_file_is_reported(tmp_path, suffix, use):
    path = tmp_path / f"empty{suffix}"
    path.touch()
    with pytest.raises(AudioError, match=rf"{path}: is empty \(0 bytes\)"):
        use(path)


@BOTH
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("content", [b"this is no audio file\n" * 40, bytes(4_000), b"\xff"])
def test_garbage_is_reported(tmp_path, suffix, content, use):
    path = tmp_path / f"garbage{suffix}"
    path.write_bytes(content)
    with pytest.raises(AudioError, match=f"{path}: cannot be "):
        use(path)


@BOTH
@pytest.mark.parametrize(
    ("suffix", "coding"),
    [
        (".flac", "PCM_16"),
        (".wav", "PCM_16"),
        (".ogg", "VORBIS"),
        (".mkv", "flac"),
        (".mp4", "aac"),
        (".webm", "libopus"),
    ],
)
def test_truncated_file_is_read_in_part_or_reported(tmp_path, suffix, coding, use):
    whole = write(tmp_path / f"whole{suffix}", coding, wave_at(48_000), 48_000).read_bytes()
    path = tmp_path / f"cut{suffix}"
    outcomes = set()
    for share in (0.01, 0.1, 0.5, 0.9):
        path.write_bytes(whole[: int(share * len(whole))])
        try:
            result = use(path)
        except AudioError as error:
            outcomes.add("reported" if str(path) in str(error) else str(error))
        else:
            assert isinstance(result, AudioInfo) or 0 < len(result) <= 16_000 * SECONDS + 1_152
            outcomes.add("read")
    assert outcomes <= {"read", "reported"}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_non_finite_values_are_refused(tmp_path, value, rate):
    wave = speech_like(8_000).numpy()
    wave[5_000] = value
    path = tmp_path / "bad values.wav"
    soundfile.write(path, wave, rate, subtype="FLOAT")
    with pytest.raises(AudioError, match=r"bad values\.wav: contains values that are not finite"):
        read_audio(path)
    assert len(read_audio(path, 0, 200)) == 200


def test_file_without_samples_is_reported(tmp_path):
    path = tmp_path / "nothing.wav"
    soundfile.write(path, np.zeros(0, np.int16), 16_000)
    assert probe_audio(path) == AudioInfo(0, 16_000)
    for start, length in [(0, None), (0, 100), (100, 100)]:
        with pytest.raises(AudioError, match=r"nothing\.wav"):
            read_audio(path, start, length)


@BOTH
def test_video_without_sound_is_reported(tmp_path, use):
    path = tmp_path / "silent film.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 64
        for _ in range(3):
            picture = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    with pytest.raises(AudioError, match=r"silent film\.mkv: has no audio stream"):
        use(path)


@pytest.mark.parametrize(
    ("suffix", "coding", "rate"),
    [
        (".wav", "PCM_16", 16_000),
        (".flac", "PCM_16", 44_100),
        (".ogg", "OPUS", 48_000),
        (".mkv", "flac", 16_000),
        (".m4a", "aac", 44_100),
    ],
)
def test_start_beyond_the_end_is_reported(tmp_path, suffix, coding, rate):
    path = write(tmp_path / f"short{suffix}", coding, wave_at(rate), rate)
    end = len(read_audio(path))
    for start in (end, end + 5, 50 * end):
        for length in (None, 1_000):
            with pytest.raises(
                AudioError, match=rf"short\{suffix}: contains no audio after [\d.]+ s"
            ):
                read_audio(path, start, length)


@pytest.mark.parametrize(
    ("suffix", "coding"), [(".flac", "PCM_16"), (".mp3", "MPEG_LAYER_III"), (".mkv", "flac")]
)
@pytest.mark.parametrize("name", ["two words", "épée 音声 🎵", "a'b\"c%20#", " leading"])
def test_reads_files_with_unusual_names(tmp_path, name, suffix, coding):
    folder = tmp_path / name
    folder.mkdir()
    path = write(folder / f"{name}{suffix}", coding, wave_at(16_000), 16_000)
    assert probe_audio(path).sample_rate == 16_000
    assert len(read_audio(str(path))) >= SECONDS * 16_000
    with pytest.raises(FileNotFoundError, match="missing"):
        read_audio(folder / f"missing{suffix}")


def test_relative_name_with_a_colon_is_not_a_url(tmp_path, monkeypatch):
    write(tmp_path / "12:30.mkv", "flac", wave_at(16_000), 16_000)
    monkeypatch.chdir(tmp_path)
    assert probe_audio("12:30.mkv").sample_rate == 16_000
    assert torch.equal(read_audio("12:30.mkv"), wave_at(16_000))


@pytest.mark.parametrize("suffix", [".WAV", ".Flac"])
def test_reads_upper_case_suffixes(tmp_path, suffix):
    path = tmp_path / f"A{suffix}"
    samples = wave_at(16_000)
    soundfile.write(path, samples.numpy(), 16_000, format=suffix[1:].upper())
    assert torch.equal(read_audio(path), samples)


@pytest.mark.parametrize("channels", [(1, 2), (2, 1)], ids=str)
def test_channel_count_may_change_within_a_file(tmp_path, channels):
    parts = []
    for count in channels:
        samples = wave_at(16_000).unsqueeze(1).expand(-1, count)
        parts.append(write(tmp_path / f"{count}.aac", "aac", samples.contiguous(), 16_000))
    path = tmp_path / "both.aac"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    assert len(read_audio(path)) >= 2 * len(wave_at(16_000))


@BOTH
def test_tags_that_are_not_utf8_are_accepted(tmp_path, use):
    path = tmp_path / "tagged.mkv"
    write_with_av(path, "flac", wave_at(16_000).view(-1, 1).numpy(), 16_000, title="cafeteria")
    tagged = path.read_bytes()
    assert tagged.count(b"cafeteria") == 1
    path.write_bytes(tagged.replace(b"cafeteria", b"caf\xe9teria"))
    use(path)


@BOTH
def test_unknown_codec_is_reported(tmp_path, use):
    path = write(tmp_path / "unknown.mkv", "flac", wave_at(16_000), 16_000)
    path.write_bytes(path.read_bytes().replace(b"A_FLAC", b"A_FLAX"))
    with pytest.raises(AudioError, match=r"unknown\.mkv"):
        use(path)


@pytest.mark.parametrize(
    ("suffix", "coding"),
    [
        (".mkv", "flac"),
        (".wav", "PCM_16"),
    ],
)
def test_reads_file_names_that_are_not_utf8(tmp_path, suffix, coding):
    plain = write(tmp_path / f"plain{suffix}", coding, wave_at(16_000), 16_000)
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9" + suffix.encode())
    plain.rename(path)
    assert probe_audio(path).sample_rate == 16_000
    assert torch.equal(read_audio(path), wave_at(16_000))


def test_garbage_collection_after_fork_does_not_hang(tmp_path):
    """Filter graphs of FFmpeg own threads that do not exist in a forked data worker."""
    path = tmp_path / "a.mkv"
    write_with_av(path, "flac", pcm16(speech_like(48_000)).numpy()[:, None], 48_000)
    gc.disable()
    try:
        read_audio(path)  # converts int16 frames, which leaves a filter graph as garbage
        worker = get_context("fork").Process(target=gc.collect)
        worker.start()
        worker.join(60)
    finally:
        gc.enable()
        worker.kill()
    assert worker.exitcode == 0
