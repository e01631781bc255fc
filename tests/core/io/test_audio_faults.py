"""Files with a wrong header, a wrong suffix or damaged content are read as FFmpeg decodes them.

The files in ``tests/faulty_audio`` are synthetic tones and noise.
"""

from __future__ import annotations

import logging
import struct
import tarfile
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch

from mae_ast.core.io.archive import list_members
from mae_ast.core.io.audio import (
    AudioError,
    AudioInfo,
    num_samples_16k,
    probe_audio,
    probe_rate,
    read_audio,
    read_long_audio,
)
from mae_ast.core.io.decoding import audio_file, ffmpeg
from tests.sounds import pcm16, speech_like, write_with_av

DATA = Path(__file__).parents[2] / "faulty_audio"
# name, decoded seconds, tolerance in seconds (packets), sample rate, note
FAULTS = [
    ("vbr_without_xing_20s.mp3", 20, 0.08, 22_050, "expected 13.638 s, decoded 20.062 s"),
    ("two_links_6s.ogg", 6, 0, 44_100, "header says 3.000 s, decoded 6.000 s"),
    ("flac_total_too_small.flac", 3, 0, 16_000, "header says 2.000 s, decoded 3.000 s"),
    ("raw_vbr_24s.aac", 24, 0.06, 22_050, "expected 322.251 s, decoded 24.056 s"),
    ("flac_unknown_total.flac", 3, 0, 16_000, "no length in its header, decoded 3.000 s"),
    ("wav_data_size_0.wav", 3, 0, 16_000, "no length in its header, decoded 3.000 s"),
    ("live_without_duration.webm", 3, 0, 48_000, "no length in its header, decoded 3.000 s"),
    ("m4a_named.mp3", 3, 0.03, 44_100, None),
    ("webm_named.wav", 3, 0, 48_000, None),
    ("gsm.wav", 3, 0, 8_000, None),
    ("one_damaged_packet.m4a", 3, 0.03, 44_100, None),
    ("second_track_default.mkv", 3, 0, 16_000, None),
]
EACH_FAULT = pytest.mark.parametrize(
    ("name", "seconds", "slack", "rate", "note"), FAULTS, ids=[fault[0] for fault in FAULTS]
)


def in_tar(folder: Path, file: Path) -> str:
    with tarfile.open(folder / "a.tar", "w:") as tar:
        tar.add(file, file.name)
    return str(next(list_members(folder / "a.tar"))[1])


@EACH_FAULT
def test_faulty_files_decode_completely_loose_and_in_a_tar(
    tmp_path, name, seconds, slack, rate, note
):
    expected = None
    for path in (DATA / name, in_tar(tmp_path, DATA / name)):
        info = probe_audio(path)
        assert info.sample_rate == probe_rate(path) == rate
        assert seconds - 1e-4 <= info.num_frames / rate <= seconds + slack + 1e-4
        assert info.note == note
        whole = read_audio(path)
        assert len(whole) == num_samples_16k(info.num_frames, rate)
        assert torch.equal(read_long_audio(path), whole)
        assert whole.int().abs().max() > 7_000
        assert expected is None or torch.equal(whole, expected)
        expected = whole
        for start, length in ((0, 9_000), (20_000, 20_000), (len(whole) - 5_000, 5_000)):
            part = read_audio(path, start, length)
            assert (part.int() - whole[start : start + length].int()).abs().max() <= 1
        with pytest.raises(AudioError, match="contains no audio after"):
            read_audio(path, len(whole), 1_000)


# -- lengths in headers --------------------------------------------------------------------------

TONE = pcm16(speech_like(48_000))
NOISE = np.random.default_rng(0).bytes(5_000)


def wav(riff_size: int, data_size: int, after: bytes = b"") -> bytes:
    """Return a WAV file of three seconds with the given sizes in its header."""
    form = struct.pack("<HHIIHH", 1, 1, 16_000, 32_000, 2, 16)
    header = b"RIFF" + struct.pack("<I", riff_size) + b"WAVEfmt " + struct.pack("<I", 16) + form
    return header + b"data" + struct.pack("<I", data_size) + TONE.numpy().tobytes() + after


@pytest.mark.parametrize(
    ("content", "note"),
    [
        (wav(0, 0), "no length in its header"),
        (wav(36, 0), "no length in its header"),
        (wav(2**32 - 1, 2**32 - 1), None),  # by convention: to the end of the file
        (wav(2**31 - 1, 2**31 - 37), None),
        (wav(36 + 64_000, 64_000), "header says 2.000 s"),
        (wav(96_036, 96_000, b"LIST" + struct.pack("<I", 4_000) + bytes(4_000)), None),
        (wav(96_036, 96_000, b"TAG" + bytes(125)), None),
        (wav(96_036, 96_000, bytes(1_000)), None),
        (wav(96_036, 96_000, bytes(20_000)), None),  # zero-padded to a full block
        (wav(96_036, 96_000, b"LIST" + struct.pack("<I", 9_000) + NOISE), None),  # truncated tags
        (wav(96_036, 96_000, b"id3 " + struct.pack("<I", len(NOISE)) + NOISE), None),
    ],
)
def test_wav_with_wrong_header_is_read_to_its_end(tmp_path, content, note):
    path = tmp_path / "a.wav"
    path.write_bytes(content)
    info = probe_audio(path)
    assert info == AudioInfo(48_000, 16_000, note and f"{note}, decoded 3.000 s")
    assert torch.equal(read_audio(path), TONE)
    assert torch.equal(read_audio(path, 31_000, 5_000), TONE[31_000:36_000])


def test_wav_tags_after_an_unpadded_odd_chunk_are_not_audio(tmp_path):
    """Some writers omit the pad byte after a data chunk of odd size."""
    form = struct.pack("<HHIIHH", 1, 1, 16_000, 48_000, 3, 24)
    samples = np.arange(2_001, dtype="<i4") << 16
    data = samples.view(np.uint8).reshape(-1, 4)[:, 1:].tobytes()
    chunks = b"WAVEfmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", len(data))
    tags = b"LIST" + struct.pack("<I", len(NOISE)) + NOISE
    content = chunks + data + tags
    (tmp_path / "a.wav").write_bytes(b"RIFF" + struct.pack("<I", len(content)) + content)
    assert probe_audio(tmp_path / "a.wav") == AudioInfo(2_001, 16_000)
    assert len(read_audio(tmp_path / "a.wav")) == 2_001


def joined(folder: Path, suffix: str, subtype: str, *kinds: tuple[int, int]) -> Path:
    """Concatenate files of three seconds each, with the given sample rates and channels."""
    path, content = folder / f"joined{suffix}", b""
    for number, (rate, channels) in enumerate(kinds):
        part = folder / f"{number}{suffix}"
        wave = speech_like(3 * rate, number, rate)[:, None].expand(-1, channels)
        soundfile.write(part, pcm16(wave).numpy(), rate, subtype)
        content += part.read_bytes()
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
@pytest.mark.parametrize(
    "kinds",
    [
        ((16_000, 1), (16_000, 1)),
        ((16_000, 1), (48_000, 2)),
        ((48_000, 2), (16_000, 1), (24_000, 1)),
    ],
)
def test_chained_ogg_equals_its_concatenated_links(tmp_path, subtype, kinds):
    path = joined(tmp_path, ".ogg", subtype, *kinds)
    seconds = 3 * len(kinds)
    info = probe_audio(path)
    assert info.sample_rate == (48_000 if subtype == "OPUS" else kinds[0][0])
    assert info.num_frames == seconds * info.sample_rate
    assert info.note == f"header says 3.000 s, decoded {seconds}.000 s"
    whole = read_audio(path)
    parts = torch.cat([read_audio(tmp_path / f"{number}.ogg") for number in range(len(kinds))])
    assert torch.equal(whole, parts)
    assert torch.equal(read_audio(path, 47_000, 2_500), whole[47_000:49_500])


def test_chained_ogg_with_equal_serial_numbers_is_read_completely(tmp_path):
    path = joined(tmp_path, ".ogg", "VORBIS", (16_000, 1))
    path.write_bytes(2 * path.read_bytes())
    assert len(read_audio(path)) == 96_000


def test_truncated_chained_ogg_is_read_or_reported(tmp_path):
    path = joined(tmp_path, ".ogg", "VORBIS", (16_000, 1), (16_000, 1))
    content, first = path.read_bytes(), (tmp_path / "0.ogg").read_bytes()
    path.write_bytes(content[: len(first) + 200])  # only part of the second link's headers
    assert torch.equal(read_audio(path), read_audio(tmp_path / "0.ogg"))
    path.write_bytes(first[first.index(b"OggS", 5_000) :])
    with pytest.raises(AudioError, match="its content is Ogg"):  # the Vorbis headers are missing
        read_audio(path)


@pytest.mark.parametrize("kinds", [((16_000, 1), (16_000, 1)), ((16_000, 1), (48_000, 2))])
def test_concatenated_mp3_is_read_to_its_end(tmp_path, kinds):
    path = joined(tmp_path, ".mp3", "MPEG_LAYER_III", *kinds)
    info = probe_audio(path)
    assert info.sample_rate == 16_000
    assert 6 * 16_000 <= info.num_frames <= 6.2 * 16_000
    assert info.note.startswith("header says 3.000 s, decoded 6.1")
    assert len(read_audio(path)) == info.num_frames


def test_concatenated_flac_is_read_to_its_end(tmp_path):
    path = joined(tmp_path, ".flac", "PCM_16", (16_000, 1), (16_000, 1))
    assert probe_audio(path).num_frames == 96_000
    expected = torch.cat([read_audio(tmp_path / f"{number}.flac") for number in range(2)])
    assert torch.equal(read_audio(path), expected)
    path.write_bytes(2 * (tmp_path / "0.flac").read_bytes())  # the last frame number is plausible
    assert len(read_audio(path)) == 96_000


@pytest.mark.parametrize(
    ("suffix", "codec", "options"),
    [
        (".mkv", "flac", {"live": "1"}),
        (".webm", "libopus", {"live": "1"}),
        (".mp4", "aac", {"movflags": "frag_keyframe+empty_moov", "frag_duration": "500000"}),
    ],
)
def test_live_recordings_without_duration_are_measured(tmp_path, suffix, codec, options):
    path = tmp_path / f"a{suffix}"
    write_with_av(path, codec, pcm16(speech_like(144_000))[:, None].numpy(), 48_000, **options)
    info = probe_audio(path)
    assert 144_000 <= info.num_frames <= 144_000 + 2 * 1_024
    assert len(read_audio(path)) == num_samples_16k(info.num_frames, 48_000)


def test_concatenated_flac_reads_equally_loose_and_in_a_tar(tmp_path):
    path = joined(tmp_path, ".flac", "PCM_16", (16_000, 1), (16_000, 1))
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(path, "a.flac")
    member = str(next(iter(list_members(tmp_path / "a.tar")))[1])
    assert probe_audio(member) == probe_audio(path)
    assert torch.equal(read_audio(member), read_audio(path))


@pytest.mark.parametrize(
    "kind",
    ["flac", "wav", "mp3", "ogg", "mkv", "webm"],
)
def test_truncated_file_gives_the_audio_that_it_contains(tmp_path, kind, caplog):
    path = tmp_path / f"a.{kind}"
    if kind in ("mkv", "webm"):
        codec = "flac" if kind == "mkv" else "libopus"
        write_with_av(path, codec, pcm16(speech_like(144_000))[:, None].numpy(), 48_000)
    else:
        soundfile.write(path, TONE.numpy(), 16_000)
    content = path.read_bytes()
    whole = read_audio(path)
    path.write_bytes(content[: len(content) * 2 // 3])
    info = probe_audio(path)
    samples = read_audio(path)
    assert len(samples) == num_samples_16k(info.num_frames, info.sample_rate)
    assert 0.5 < len(samples) / len(whole) < 0.8
    same = len(samples) - 3_000  # the last frame may lack its overlap
    assert (samples[:same].int() - whole[:same].int()).abs().max() <= 1
    assert not caplog.records


@pytest.mark.parametrize("kind", ["flac", "mp3"])
@pytest.mark.parametrize("missing", [10, 400, 1_500])
def test_length_of_a_slightly_truncated_file_is_measured(tmp_path, kind, missing):
    path = tmp_path / f"a.{kind}"
    soundfile.write(path, TONE.numpy(), 16_000)
    path.write_bytes(path.read_bytes()[:-missing])
    samples = read_audio(path)
    assert len(samples) < len(TONE) or missing == 10  # only padding in MP3
    assert probe_audio(path).num_frames == len(samples)


def test_flac_without_a_complete_frame_is_reported(tmp_path):
    soundfile.write(tmp_path / "a.flac", TONE.numpy(), 16_000)
    (tmp_path / "a.flac").write_bytes((tmp_path / "a.flac").read_bytes()[:200])
    with pytest.raises(AudioError, match=r"a\.flac: cannot be"):
        probe_audio(tmp_path / "a.flac")


# -- damage --------------------------------------------------------------------------------------


def test_damaged_packet_becomes_silence_with_one_warning(caplog):
    audio_file._warned.clear()
    path = DATA / "one_damaged_packet.m4a"
    with caplog.at_level(logging.WARNING):
        whole = read_audio(path)
        read_audio(path)
    (record,) = caplog.records
    assert record.getMessage() == f"{path}: 3 of 131 packets are damaged; replaced by silence"
    silent = (whole == 0).nonzero().flatten()
    begin, end = round(69_632 / 44_100 * 16_000), round(72_704 / 44_100 * 16_000)
    assert (whole[begin + 10 : end - 10] == 0).all()
    assert end - begin - 20 <= len(silent) < end - begin + 400
    # Later audio keeps its position.
    assert torch.equal(read_audio(path, end + 5_000, 4_000), whole[end + 5_000 : end + 9_000])


def test_damaged_flac_in_mkv_keeps_later_positions(tmp_path):
    samples = pcm16(speech_like(144_000))
    path = tmp_path / "a.mkv"
    write_with_av(path, "flac", samples[:, None].numpy(), 48_000)
    whole, content = read_audio(path), path.read_bytes()
    middle = len(content) // 2
    path.write_bytes(content[:middle] + bytes(300) + content[middle + 300 :])
    damaged = read_audio(path)
    assert len(damaged) == len(whole)
    differs = (damaged.int() - whole.int()).abs() > 1
    assert 0 < differs.sum() < 1_800  # a frame of 4,608 samples at 48 kHz, and the filter's margin
    assert not differs[-16_000:].any()


def test_file_of_mostly_damaged_packets_is_refused(tmp_path):
    content = bytearray((DATA / "one_damaged_packet.m4a").read_bytes())
    begin = content.index(b"mdat") + 1_000
    end = min(content.index(b"moov") if content.index(b"moov") > begin else len(content), 18_000)
    content[begin:end] = np.random.default_rng(0).bytes(end - begin)
    path = tmp_path / "broken.m4a"
    path.write_bytes(content)
    with pytest.raises(AudioError, match=r"broken\.m4a: .*\d+ of \d+ packets are damaged"):
        read_audio(path)


# -- content and suffix --------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".flac", ".wav", ".mp3", ".ogg", ".mkv", ".m4a", ".raw", ""])
def test_content_determines_the_decoder(tmp_path, suffix):
    kinds = {".flac": 0, ".wav": 0, ".mp3": 2_000, ".ogg": 2_000}
    for kind in kinds:
        path = tmp_path / f"a{kind}"
        soundfile.write(path, TONE.numpy(), 16_000)
        expected = read_audio(path)
        renamed = path.rename(tmp_path / f"b{suffix}")
        assert torch.equal(read_audio(renamed), expected)
        assert probe_audio(renamed).num_frames == len(expected) == 48_000


@pytest.mark.parametrize(
    "content",
    [
        "ffconcat version 1.0\nfile a.mp3\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\na.mp3\n#EXT-X-ENDLIST\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n",
    ],
    ids=["ffconcat", "HLS", "SDP"],
)
def test_playlist_opens_no_other_file_and_no_network(tmp_path, content):
    soundfile.write(tmp_path / "a.mp3", TONE.numpy(), 16_000)
    (tmp_path / "list.wav").write_text(content)
    with pytest.raises(AudioError, match=r"list\.wav: cannot be"):
        read_audio(tmp_path / "list.wav")


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"<!DOCTYPE html>\n<html>" + b"x" * 3_000, "an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64, "a Git LFS"),
        (b"PK\x03\x04" + bytes(3_000), "a zip archive"),
        (bytes(3_000), "zero bytes"),
        (b"fLaC" + b"x" * 3_000, "FLAC"),
        (b"\x1a\x45\xdf\xa3" + b"x" * 3_000, "Matroska or WebM"),
    ],
)
@pytest.mark.parametrize("suffix", [".wav", ".mp3", ".mkv"])
def test_message_names_the_content_type(tmp_path, content, name, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    for use in (read_audio, probe_audio, probe_rate):
        with pytest.raises(AudioError) as caught:
            use(path)
        message = str(caught.value)
        assert message.startswith(f"{path}: cannot be ")
        assert name in message
        assert "\n" not in message
        assert "pipe" not in message


def test_default_track_is_read(tmp_path):
    whole = read_audio(DATA / "second_track_default.mkv")
    assert whole.int().abs().max() > 7_000  # the first track is silent
    assert torch.equal(
        read_audio(DATA / "second_track_default.mkv", 9_000, 100), whole[9_000:9_100]
    )


# -- float samples -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("peak", "words"),
    [(11_467.0, "16-bit"), (40_000.0, "24-bit"), (1e9, "32-bit"), (2.1, "16-bit")],
)
@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
@pytest.mark.parametrize("kind", ["wav", "mkv"])
def test_float_samples_far_beyond_full_scale_are_refused(tmp_path, peak, words, subtype, kind):
    wave = speech_like(16_000).numpy()
    wave *= peak / np.abs(wave).max()
    path = tmp_path / "a.wav"
    soundfile.write(path, wave, 16_000, subtype)
    if kind == "mkv":
        path = remuxed(path)
    with pytest.raises(
        AudioError, match=rf"a\.{kind}: contains float samples up to .*{words} values"
    ):
        read_audio(path)


def remuxed(path: Path) -> Path:
    """Copy the packets to Matroska."""
    target = path.with_suffix(".mkv")
    with av.open(str(path)) as source, av.open(str(target), "w") as output:
        stream = output.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(audio=0):
            if packet.size:
                packet.stream = stream
                output.mux(packet)
    return target


def test_small_overshoot_of_float_samples_is_clipped(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.float32([1.2, -1.9, 0.5]), 16_000, "FLOAT")
    assert read_audio(path).tolist() == [32767, -32768, 16384]


# -- PyAV's versions -----------------------------------------------------------------------------


def test_removed_pyav_argument_is_not_passed_to_newer_versions(tmp_path, monkeypatch):
    calls = []
    original = av.open

    def opened(file, mode, options=None, **more):
        calls.append(more)
        return original(file, mode, options=options)

    monkeypatch.setattr(ffmpeg.av, "open", opened)
    monkeypatch.setattr(ffmpeg, "_TAGS", ffmpeg.tag_options("19.0.1"))
    assert len(read_audio(DATA / "webm_named.wav")) == 48_000
    assert calls == [{}]
    assert ffmpeg.tag_options("18.1.0") == {"metadata_errors": "replace"}
