"""Parts of long files: what they cost does not depend on where they lie."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import torch

from mae_ast.core.io.audio import probe_audio, read_audio
from mae_ast.core.io.decoding import seek
from mae_ast.core.io.decoding.ffmpeg import Clock, Stream
from tests.sounds import pcm16, speech_like, write_with_av

pytestmark = pytest.mark.slow

RATE = 16_000
# suffix, codec; whether its decoder converges to the bit after a seek
SEEKABLE = [
    (".ogg", "vorbis", True),
    (".ogg", "libopus", True),
    (".mkv", "vorbis", True),
    (".webm", "libopus", True),
    (".mkv", "flac", True),
    (".mkv", "pcm_s16le", True),
    (".mkv", "libmp3lame", True),
    (".mp3", "libmp3lame", True),
    (".mp4", "alac", True),
    (".m4a", "aac", False),
    (".mkv", "aac", False),
    (".mp4", "ac3", False),
]
EACH = pytest.mark.parametrize(
    ("suffix", "codec", "converges"), SEEKABLE, ids=[f"{c}{s}" for s, c, _ in SEEKABLE]
)


def write(folder: Path, suffix: str, codec: str, seconds: float) -> Path:
    rate, channels = (48_000, 1) if codec in ("libopus", "ac3") else (RATE, 1)
    if codec == "vorbis":
        channels = 2  # FFmpeg's encoder knows no mono
    wave = speech_like(round(seconds * rate), 0, rate)[:, None].expand(-1, channels)
    path = folder / f"a{suffix}"
    write_with_av(path, codec, pcm16(wave).numpy(), rate)
    return path


@EACH
def test_segments_are_what_is_decoded_in_one_go(tmp_path, monkeypatch, suffix, codec, converges):
    path = write(tmp_path, suffix, codec, 4.7)
    expected = read_audio(path)  # shorter than a segment
    monkeypatch.setattr(seek, "SEGMENT_S", 1)
    segmented = read_audio(path)
    assert segmented.shape == expected.shape
    assert torch.equal(segmented[:RATE], expected[:RATE])
    difference = (segmented.float() - expected.float()).abs()
    if converges:
        assert difference.max() <= 2
    else:  # noise that is drawn while decoding is drawn anew
        assert difference.norm() < 0.1 * expected.float().norm()
        assert abs(segmented.float().norm() / expected.float().norm() - 1) < 0.01


@pytest.fixture
def packets(monkeypatch) -> list[int]:
    """Counts of packets that were decoded, one for each time that a stream was read."""
    counts: list[int] = []
    check = Stream.check

    def counting(stream: Stream) -> None:
        counts.append(stream.packets)
        check(stream)

    monkeypatch.setattr(Stream, "check", counting)
    return counts


@EACH
def test_few_packets_before_a_part_are_decoded(
    tmp_path, monkeypatch, packets, suffix, codec, converges
):
    monkeypatch.setattr(seek, "SEGMENT_S", 2)
    path = write(tmp_path, suffix, codec, 40)
    read_audio(path, 0, RATE)
    (at_start,) = packets
    packets.clear()
    for second in (19, 30, 38):
        assert len(read_audio(path, round((second + 0.5) * RATE), RATE)) == RATE
    # Pre-roll, a segment, and in Matroska the cluster of 5 s that is landed in; not 20 to 38 s.
    assert max(packets) < 10 * at_start + 10
    info = probe_audio(path)
    assert abs(info.num_frames / info.sample_rate - 40) < 0.1
    assert info.note is None


IN_A_CHILD = """
import sys
from mae_ast.bench.machine import peak_memory
from mae_ast.core.io.audio import read_audio
peaks = []
for start in (0, 0, 5 * 60 + 40):
    assert len(read_audio(sys.argv[1], start * 16_000, 160_000)) == 160_000
    peaks.append(1024 * peak_memory())
print(peaks[2] - peaks[1])
"""


def test_memory_does_not_depend_on_the_place(tmp_path):
    path = tmp_path / "a.ogg"
    minute = speech_like(RATE * 60).numpy()
    with soundfile.SoundFile(path, "w", RATE, 1, "VORBIS") as sound:
        for _ in range(6):  # libsndfile crashes where it is given all of it at once
            sound.write(minute)
    command = [sys.executable, "-c", IN_A_CHILD, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert float(done.stdout) < 10  # MiB; the samples before the part alone are 21


def test_a_container_that_does_not_seek_is_decoded_from_the_start(tmp_path, monkeypatch):
    monkeypatch.setattr(seek, "SEGMENT_S", 1)
    path = write(tmp_path, ".mkv", "aac", 4)
    whole = read_audio(path, 2 * RATE, RATE)
    monkeypatch.setattr(seek, "_sought", lambda *_, **__: None)
    from_start = read_audio(path, 2 * RATE, RATE)
    assert from_start.shape == whole.shape
    assert (from_start.float() - whole.float()).norm() < 0.1 * whole.float().norm()


def test_rounded_timestamps_give_exact_positions():
    """Matroska's are whole milliseconds; frames of AAC are 1,024 samples."""
    from fractions import Fraction

    clock = Clock(44_100, Fraction(1, 1_000), 7, 1_024, 1_024)
    for number in range(1, 100_000, 777):
        timestamp = 7 + round(number * 1_024 / 44.1)
        assert clock.position(timestamp) == number * 1_024
    assert clock.position(7) == 0
