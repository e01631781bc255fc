"""For every format that soundfile or PyAV writes, parts equal slices and lengths are exact."""

from __future__ import annotations

import random
import tarfile
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch

from mae_ast.core.io.archive import list_members
from mae_ast.core.io.audio import num_samples_16k, probe_audio, read_audio
from mae_ast.core.io.decoding import seek
from tests.sounds import pcm16, speech_like, write_with_av

pytestmark = pytest.mark.slow

SECONDS = 2.3
PARTS = 8

# RAW has no header. libsndfile cannot read the DWVW that it writes, nothing reads its 20-bit ALAC,
# and it cannot write MPEG layers I and II.
UNREADABLE = {"DWVW_12", "DWVW_16", "DWVW_24", "DWVW_N", "ALAC_20"}
UNREADABLE |= {"MPEG_LAYER_I", "MPEG_LAYER_II"}
BY_SOUNDFILE = [
    (name, subtype)
    for name in soundfile.available_formats()
    for subtype in soundfile.available_subtypes(name)
    if name != "RAW" and subtype not in UNREADABLE
]
# container, suffix, codecs, rate, channels
CONTAINERS = [
    ("3g2", ".3g2", "aac", 44_100, 2),
    ("3gp", ".3gp", "aac", 44_100, 2),
    ("ac3", ".ac3", "ac3", 44_100, 2),
    ("adts", ".aac", "aac", 44_100, 2),
    ("adx", ".adx", "adpcm_adx", 44_100, 2),
    ("aiff", ".afc", "pcm_s16le", 44_100, 2),
    ("alp", ".pcm", "adpcm_ima_alp", 44_100, 2),
    ("apm", ".apm", "adpcm_ima_apm", 44_100, 2),
    ("argo_asf", ".argo_asf", "adpcm_argo", 44_100, 2),
    ("asf", ".asf", "aac", 44_100, 2),
    ("au", ".au", "pcm_s16be", 44_100, 2),
    ("au", ".au", "g726le", 16_000, 1),
    ("avi", ".avi", "aac libmp3lame", 44_100, 2),
    ("avm2", ".avm2", "libmp3lame", 44_100, 2),
    ("caf", ".caf", "libmp3lame", 44_100, 2),
    ("dvd", ".dvd", "libmp3lame", 44_100, 2),
    ("eac3", ".eac3", "eac3", 44_100, 2),
    ("f4v", ".f4v", "aac", 44_100, 2),
    ("flac", ".flac", "flac", 44_100, 2),
    ("flv", ".flv", "aac libmp3lame", 44_100, 2),
    ("g722", ".g722", "g722", 16_000, 1),
    ("ipod", ".m4a", "aac", 44_100, 2),
    ("ircam", ".ircam", "pcm_s16le", 44_100, 2),
    ("ismv", ".isma", "aac", 44_100, 2),
    ("kvag", ".vag", "adpcm_ima_ssi", 44_100, 2),
    ("latm", ".latm", "aac", 44_100, 2),
    (
        "matroska",
        ".mkv",
        "aac ac3_fixed alac mp2fixed mp3 pcm_f32le pcm_f64le pcm_s24be "
        "pcm_s24le pcm_s32be pcm_s32le vorbis flac pcm_s16le libmp3lame",
        44_100,
        2,
    ),
    ("matroska", ".mkv", "opus libopus", 48_000, 2),
    ("matroska", ".mkv", "real_144", 8_000, 1),
    (
        "mov",
        ".mov",
        "aac adpcm_ima_qt pcm_alaw pcm_f32be pcm_f64be pcm_mulaw pcm_s8 pcm_s16le alac",
        44_100,
        2,
    ),
    ("mov", ".mov", "nellymoser", 16_000, 1),
    ("mp2", ".m2a", "mp2", 44_100, 2),
    ("mp3", ".mp3", "libmp3lame", 44_100, 2),
    ("mp4", ".mp4", "aac flac libmp3lame", 44_100, 2),
    ("mp4", ".mp4", "libopus", 48_000, 2),
    ("mpeg", ".mpeg", "libmp3lame", 44_100, 2),
    ("mpeg", ".mpeg", "pcm_dvd", 48_000, 2),
    ("mpegts", ".m2t", "aac", 44_100, 2),
    ("mpegts", ".m2t", "libopus", 48_000, 2),
    (
        "nut",
        ".nut",
        "aac pcm_s16be_planar pcm_s16le_planar pcm_s24le_planar "
        "pcm_s32le_planar pcm_s64be pcm_s8_planar pcm_u16be pcm_u16le pcm_u24be "
        "pcm_u24le pcm_u32be pcm_u32le",
        44_100,
        2,
    ),
    ("nut", ".nut", "libopencore_amrnb", 16_000, 1),
    ("oga", ".oga", "libopus", 48_000, 2),
    ("ogg", ".ogg", "libopus", 48_000, 2),
    ("ogg", ".ogg", "flac vorbis", 44_100, 2),
    ("ogv", ".ogv", "libopus", 48_000, 2),
    ("opus", ".opus", "libopus", 48_000, 2),
    ("rm", ".ra", "aac", 44_100, 2),
    ("rso", ".rso", "pcm_u8", 16_000, 1),
    ("sbc", ".msbc", "sbc", 44_100, 2),
    ("smjpeg", ".smjpeg", "pcm_s16le", 44_100, 2),
    ("spdif", ".spdif", "libmp3lame", 44_100, 2),
    ("spx", ".spx", "libopus", 48_000, 2),
    ("svcd", ".vob", "libmp3lame", 44_100, 2),
    ("swf", ".swf", "libmp3lame", 44_100, 2),
    ("tta", ".tta", "tta", 44_100, 2),
    ("vcd", ".vcd", "libmp3lame", 44_100, 2),
    ("vob", ".vob", "libmp3lame", 44_100, 2),
    ("voc", ".voc", "pcm_s16le", 44_100, 2),
    ("w64", ".w64", "libmp3lame", 44_100, 2),
    (
        "wav",
        ".wav",
        "libmp3lame adpcm_ima_wav adpcm_ms adpcm_swf adpcm_yamaha dfpwm pcm_s64le pcm_s16le",
        44_100,
        2,
    ),
    ("wav", ".wav", "g726", 16_000, 1),
    ("webm", ".webm", "libopus", 48_000, 2),
    ("webm", ".webm", "vorbis", 44_100, 2),
    ("wsaud", ".aud", "adpcm_ima_ws", 44_100, 2),
    ("wtv", ".wtv", "libmp3lame", 44_100, 2),
    ("wv", ".wv", "wavpack", 44_100, 2),
]
BY_PYAV = [
    (container, suffix, codec, rate, channels)
    for container, suffix, codecs, rate, channels in CONTAINERS
    for codec in codecs.split()
]


def samples(rate: int, channels: int) -> np.ndarray:
    """Return (L, channels) int16."""
    length = round(SECONDS * rate)
    return torch.stack([pcm16(speech_like(length, n, rate)) for n in range(channels)], 1).numpy()


@pytest.fixture(autouse=True)
def short_segments(monkeypatch):
    """Shorten the segments, so that short files are also sought in."""
    monkeypatch.setattr(seek, "SEGMENT_S", 1)


def assert_parts_equal_slices(path: Path) -> None:
    info = probe_audio(path)
    whole = read_audio(path)
    assert len(whole) == num_samples_16k(info.num_frames, info.sample_rate)
    assert SECONDS - 0.01 < info.num_frames / info.sample_rate < SECONDS + 0.2
    packed = path.with_suffix(".tar")
    with tarfile.open(packed, "w:") as tar:
        tar.add(path, path.name)
    member = str(next(list_members(packed))[1])
    assert len(read_audio(member)) == len(whole)
    chance = random.Random(0)
    for number in range(PARTS):
        start = chance.randrange(len(whole))
        length = chance.randrange(1, len(whole) - start + 1)
        part = read_audio(member if number % 4 == 0 else path, start, length)
        assert part.shape == (length,)
        expected = whole[start : start + length]
        assert (part.int() - expected.int()).abs().max() <= 1, (start, length)


@pytest.mark.parametrize(("name", "subtype"), BY_SOUNDFILE)
def test_parts_equal_slices_in_formats_that_soundfile_writes(tmp_path, name, subtype):
    path = tmp_path / f"a.{name.lower()}"
    for rate, channels in ((44_100, 2), (16_000, 1), (8_000, 1)):  # some formats support only one
        data = samples(rate, channels)
        try:
            data = data / 32768 if subtype in ("FLOAT", "DOUBLE") else data
            soundfile.write(path, data, rate, subtype, format=name)
            break
        except soundfile.LibsndfileError:
            continue
    else:
        pytest.skip("this libsndfile writes none of the rates")
    if name in ("SD2", "XI", "WVE"):  # the header is in another file, or the rate is fixed
        whole = read_audio(path)
        assert torch.equal(read_audio(path, 5_000, 9_000), whole[5_000:14_000])
        return
    assert_parts_equal_slices(path)


@pytest.mark.parametrize(("container", "suffix", "codec", "rate", "channels"), BY_PYAV)
def test_parts_equal_slices_in_formats_that_pyav_writes(
    tmp_path, container, suffix, codec, rate, channels
):
    path = tmp_path / f"a{suffix}"
    try:
        write_with_av(path, codec, samples(rate, channels), rate, container=container)
    except (av.FFmpegError, ValueError) as error:
        pytest.skip(f"this FFmpeg does not write it ({error})")
    assert_parts_equal_slices(path)
