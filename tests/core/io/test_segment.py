"""A segment equals its slice of the file, is read by seeking, and must lie within the file."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from mae_ast.core.io.archive import list_members
from mae_ast.core.io.audio import AudioError, probe_audio, read_audio
from mae_ast.core.io.manifest import Manifest, ManifestError, write_manifest
from mae_ast.core.io.section import Section
from mae_ast.core.io.segment import Segment, SegmentError, read_segment, stream_segment
from tests.sounds import pcm16, speech_like, write_with_av

SECONDS = 3.3
CASES = [
    *((".flac", "PCM_16", rate) for rate in (8_000, 16_000, 44_100)),
    (".wav", "PCM_24", 44_100),
    (".mp3", "MPEG_LAYER_III", 44_100),
    (".mp3", "MPEG_LAYER_III", 16_000),
    (".ogg", "VORBIS", 16_000),
    (".ogg", "VORBIS", 44_100),
    (".m4a", "aac", 48_000),
]


def write(path: Path, coding: str, rate: int, seconds: float = SECONDS) -> Path:
    samples = pcm16(speech_like(round(seconds * rate), rate=rate)).numpy()
    if coding.isupper():
        soundfile.write(path, samples, rate, subtype=coding)
    else:
        write_with_av(path, coding, samples[:, None], rate)
    return path


def manifest_of(path: Path, rows: list[tuple[str, int, int, int]]) -> Manifest:
    write_manifest(path, ".", rows)
    return Manifest.load(path)


def joined(blocks: list[Tensor]) -> Tensor:
    return torch.cat(blocks)


@pytest.mark.parametrize("in_tar", [False, True], ids=["loose", "in a tar"])
@pytest.mark.parametrize(("suffix", "coding", "rate"), CASES)
def test_segments_equal_slices_and_join_to_the_whole_file(tmp_path, suffix, coding, rate, in_tar):
    path = write(tmp_path / f"sound{suffix}", coding, rate)
    info, whole = probe_audio(path), read_audio(path)
    name = path.name
    if in_tar:
        with tarfile.open(tmp_path / "shard.tar", "w") as tar:
            tar.add(path, name)
        ((_, member),) = list_members(str(tmp_path / "shard.tar"))
        name = str(member).removeprefix(f"{tmp_path}/")
    limits = [0, 1, 5_001, 5_002, round(1.7 * rate), info.num_frames - 777, info.num_frames]
    rows = [(name, end - start, info.sample_rate, start) for start, end in pairwise(limits)]
    manifest = manifest_of(tmp_path / "train.tsv", rows)
    at = 0
    for row, length in enumerate(manifest.num_samples.tolist()):
        segment = manifest.segment(row)
        assert (segment.start, segment.num_samples) == (at, length)
        if length:  # 1 sample at 44.1 kHz may hold no sample at 16 kHz
            samples, expected = read_segment(segment), whole[at : at + length]
            assert len(samples) == len(expected)
            assert (samples.int() - expected.int()).abs().max() <= (rate != 16_000)
            assert torch.equal(
                stream_segment(segment, lambda blocks: joined(list(blocks))), samples
            )
        at += length
    assert abs(at - len(whole)) <= (0 if coding.startswith("PCM") else 2_048)


def test_part_of_a_segment_equals_the_slice(tmp_path):
    path = write(tmp_path / "a.flac", "PCM_16", 16_000)
    whole, segment = read_audio(path), Segment(str(path), 5_000, 20_000)
    assert torch.equal(read_segment(segment), whole[5_000:25_000])
    assert torch.equal(read_segment(segment, 3_000, 4_000), whole[8_000:12_000])
    assert torch.equal(read_segment(segment, 19_000, 4_000), whole[24_000:25_000])
    assert torch.equal(read_segment(segment, 19_000), whole[24_000:25_000])
    for beyond in (20_000, 21_000):
        with pytest.raises(AudioError, match="contains no audio after"):
            read_segment(segment, beyond, 100)
    assert torch.equal(read_segment(Segment(str(path)), 1_000), whole[1_000:])


# -- seeking ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "coding"), [(".flac", "PCM_16"), (".wav", "PCM_16"), (".mkv", "flac")]
)
def test_last_segment_of_a_long_file_is_read_by_seeking(tmp_path, monkeypatch, suffix, coding):
    rate, seconds = 16_000, 600
    noise = np.random.default_rng(0).normal(0, 3_000, 20 * rate).astype(np.int16)
    samples = np.tile(noise, seconds // 20)
    path = tmp_path / f"long{suffix}"
    if coding.isupper():
        soundfile.write(path, samples, rate, subtype=coding)
    else:
        write_with_av(path, coding, samples[:, None], rate)
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:  # whose reads can be counted
        tar.add(path, path.name)
    size = path.stat().st_size
    path.unlink()
    ((_, member),) = list_members(str(tmp_path / "shard.tar"))
    counted = []
    original = Section.readinto

    def readinto(section: Section, buffer: object) -> int:
        counted.append(original(section, buffer))
        return counted[-1]

    monkeypatch.setattr(Section, "readinto", readinto)
    segment = Segment(str(member), (seconds - 5) * rate, 5 * rate)
    assert len(read_segment(segment)) == 5 * rate
    assert size > 1.5e7
    assert sum(counted) < size / 5


MP3 = pytest.param(
    ".mp3",
    marks=pytest.mark.skipif(
        int(av.__version__.split(".")[0]) < 15, reason="PyAV 14 counts an MP3's padding as audio"
    ),
)

# -- segments beyond the end --------------------------------------------------------------------


@pytest.fixture
def recording(tmp_path: Path) -> Callable[[str], Path]:
    """Function ``recording(suffix)`` that writes ``a{suffix}`` of 1 s."""

    def written(suffix: str) -> Path:
        coding = {".flac": "PCM_16", ".wav": "PCM_16", ".mp3": "MPEG_LAYER_III"}[suffix]
        return write(tmp_path / f"a{suffix}", coding, 16_000, 1)

    return written


@pytest.mark.parametrize("suffix", [".flac", ".wav", MP3])
def test_segment_beyond_the_end_is_reported_with_the_line(tmp_path, recording, suffix):
    frames = probe_audio(recording(suffix)).num_frames
    rows = [(f"a{suffix}", 1_000, 16_000, 0), (f"a{suffix}", 1_000, 16_000, frames - 1_000)]
    manifest_of(tmp_path / "train.tsv", rows)
    for start, place in ((frames - 999, "reaches beyond"), (frames + 10, "begins after")):
        with pytest.raises(ManifestError) as raised:
            manifest_of(tmp_path / "train.tsv", [*rows, (f"a{suffix}", 1_000, 16_000, start)])
        message = str(raised.value)
        assert message.startswith(f"{tmp_path}/train.tsv:4: {tmp_path}/a{suffix}: the segment from")
        assert place in message
        assert f"start + length must be at most {frames} samples at 16000 Hz" in message


def test_segment_beyond_the_end_is_reported_when_read(recording):
    path = str(recording(".flac"))
    assert len(read_segment(Segment(path, 15_000, 1_000))) == 1_000
    for start in (15_001, 16_000, 20_000):
        segment = Segment(path, start, 1_000)
        for read in (read_segment, lambda each: stream_segment(each, lambda blocks: list(blocks))):
            with pytest.raises(SegmentError, match=r"a\.flac: the segment from .* at 1 s; start"):
                read(segment)
    assert len(read_segment(Segment(path, 15_001, 1_000), 0, 999)) == 999


@pytest.mark.parametrize("suffix", [".flac", ".mp3"])
def test_segment_at_another_rate_than_its_file_is_reported(tmp_path, recording, suffix):
    recording(suffix)
    with pytest.raises(
        ManifestError, match=rf"train\.tsv:2: .*/a\{suffix}: is sampled at 16000 Hz"
    ):
        manifest_of(tmp_path / "train.tsv", [(f"a{suffix}", 1_000, 48_000, 0)])
    rows = [(f"a{suffix}", 1_000, rate, 9_000) for rate in (16_000, 48_000)]
    with pytest.raises(ManifestError, match=r"train\.tsv:3: .*not 48000"):
        manifest_of(tmp_path / "train.tsv", rows)


def test_each_file_is_checked_once(tmp_path, recording, monkeypatch):
    from mae_ast.core.io import segment as module

    looked_at = []
    original = module.read_header
    monkeypatch.setattr(
        module, "read_header", lambda path: (looked_at.append(path), original(path))[1]
    )
    recording(".flac"), recording(".wav")
    rows = [("a.flac", 100, 16_000, start) for start in (500, 900, 100)]
    manifest_of(tmp_path / "train.tsv", [*rows, ("a.wav", 100, 16_000, 0), ("a.wav", 100, 16_000)])
    assert sorted(Path(path).name for path in looked_at) == ["a.flac", "a.wav"]


def test_unreadable_file_is_left_to_the_decoder(tmp_path):
    (tmp_path / "a.flac").write_bytes(b"fLaC garbage")
    manifest = manifest_of(tmp_path / "train.tsv", [("a.flac", 100, 16_000, 5)])
    with pytest.raises(AudioError, match=r"a\.flac: cannot be"):
        read_segment(manifest.segment(0))


def test_segment_is_named_by_its_limits_in_seconds():
    assert str(Segment("/a/b.wav")) == "/a/b.wav"
    assert str(Segment("/a/b.wav", 8_001, 16_000)) == "/a/b.wav (0.5000625 to 1.5000625 s)"
    assert str(Segment("/a/b.wav", 0, 160_000)) == "/a/b.wav (0 to 10 s)"
