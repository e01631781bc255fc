"""``mae-ast manifest``: listed files and their lengths, and reports on the others."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from mae_ast.cli.main import app
from mae_ast.cli.manifest import PRETRAINING_S
from mae_ast.core.io.audio import read_audio
from mae_ast.core.io.manifest import Manifest
from mae_ast.core.io.segment import read_segment
from mae_ast.core.io.suffixes import AUDIO_SUFFIXES
from mae_ast.trainer.command import config_dir
from mae_ast.trainer.presets import read_preset
from tests.sounds import pcm16, speech_like, write_with_av

pytestmark = pytest.mark.slow

# Suffix to FFmpeg's muxer and encoder, for those that can be written here.
BY_FFMPEG = {
    ".3g2": ("3g2", "aac"),
    ".3gp": ("3gp", "aac"),
    ".aac": ("adts", "aac"),
    ".ac3": ("ac3", "ac3"),
    ".asf": ("asf", "wmav2"),
    ".avi": ("avi", "mp2"),
    ".eac3": ("eac3", "eac3"),
    ".f4v": ("f4v", "aac"),
    ".flv": ("flv", "aac"),
    ".m2ts": ("mpegts", "aac"),
    ".m4a": ("ipod", "aac"),
    ".m4b": ("ipod", "aac"),
    ".mka": ("matroska", "flac"),
    ".mkv": ("matroska", "flac"),
    ".mov": ("mov", "pcm_s16le"),
    ".mp2": ("mp2", "mp2"),
    ".mp4": ("mp4", "aac"),
    ".mpg": ("mpeg", "mp2"),
    ".nut": ("nut", "pcm_s16le"),
    ".ogv": ("ogg", "flac"),
    ".opus": ("opus", "libopus"),
    ".spx": ("ogg", "libopus"),
    ".ts": ("mpegts", "mp2"),
    ".tta": ("tta", "tta"),
    ".vob": ("vob", "mp2"),
    ".weba": ("webm", "libopus"),
    ".webm": ("webm", "libopus"),
    ".wma": ("asf", "wmav2"),
    ".wmv": ("asf", "wmav2"),
    ".wv": ("wv", "wavpack"),
}
BY_SOUNDFILE = {
    **{".aif": "AIFF", ".aifc": "AIFF", ".aiff": "AIFF", ".au": "AU", ".avr": "AVR"},
    **{".caf": "CAF", ".flac": "FLAC", ".htk": "HTK", ".ircam": "IRCAM", ".mp3": "MP3"},
    **{".nist": "NIST", ".oga": "OGG", ".ogg": "OGG", ".paf": "PAF", ".pvf": "PVF"},
    **{".rf64": "RF64", ".sf": "IRCAM", ".snd": "AU", ".sph": "NIST", ".svx": "SVX"},
    **{".voc": "VOC", ".w64": "W64", ".wav": "WAV"},
}


def write(path: Path, samples: np.ndarray, rate: int) -> Path:
    """Write (L,) int16 samples in the format that the suffix names."""
    if path.suffix in BY_FFMPEG:
        form, codec = BY_FFMPEG[path.suffix]
        plain = path.with_name("source.wav")
        soundfile.write(plain, samples, rate)
        with av.open(str(plain)) as source, av.open(str(path), "w", format=form) as container:
            options = {"strict": "experimental"}
            stream = container.add_stream(codec, rate=rate, layout="mono", options=options)
            stream.bit_rate = 128_000
            for frame in source.decode(audio=0):
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        plain.unlink()
    else:
        form = BY_SOUNDFILE[path.suffix]
        subtype = {"OGG": "VORBIS", "MP3": "MPEG_LAYER_III"}.get(form, "PCM_16")
        soundfile.write(path, samples, rate, subtype, format=form)
    return path


def manifest(*arguments: object) -> str:
    """Run the command and return its output."""
    result = CliRunner().invoke(app, ["manifest", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def lengths(path: Path) -> dict[str, int]:
    """Return the number of samples at 16 kHz of each file of a manifest, by name."""
    listed = Manifest.read(path)
    names = (listed.row_path(row) for row in range(len(listed)))
    return dict(zip(names, listed.num_samples.tolist(), strict=True))


def test_each_writable_format_is_listed_at_its_length(tmp_path: Path) -> None:
    """Compare lengths with the decoded samples, within a packet of a lossy codec."""
    rate = 48_000
    samples = pcm16(speech_like(2 * rate, 1, rate)).numpy()
    folder = tmp_path / "all"
    folder.mkdir()
    suffixes = sorted({*BY_FFMPEG, *BY_SOUNDFILE})
    assert set(suffixes) <= AUDIO_SUFFIXES
    for suffix in suffixes:
        write(folder / f"a{suffix}", samples, rate)
    said = manifest(folder, "--out", tmp_path, "--valid", 0)
    assert "skipped" not in said
    listed = lengths(tmp_path / "train.tsv")
    assert sorted(listed) == sorted(f"a{suffix}" for suffix in suffixes)
    for name, length in listed.items():
        decoded = len(read_audio(folder / name))
        assert abs(length - decoded) <= 1_024, (name, length, decoded)
        assert abs(length - 32_000) <= 1_024, (name, length)


def test_others_are_counted_by_suffix(tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    (folder / "deep").mkdir(parents=True)
    write(folder / "a.flac", pcm16(speech_like(16_000)).numpy(), 16_000)
    for name in ("a.txt", "deep/b.TXT", "c.json", "README", "Dr. Who and the end", ".hidden.wav"):
        (folder / name).touch()
    with tarfile.open(folder / "a.tar", "w") as tar:
        tar.add(folder / "a.flac", "b.flac")
        for number in range(3):
            tar.add(folder / "c.json", f"{number}.json")
    said = manifest(folder, folder / "deep", "--out", tmp_path / "out", "--valid", 0)
    assert "skipped, by suffix: 4 .json, 2 .txt, 2 without a suffix, 1 hidden\n" in said
    assert len(lengths(tmp_path / "out" / "train.tsv")) == 2
    (folder / "a.flac").unlink()
    (folder / "a.tar").unlink()
    with pytest.raises(ValueError, match=r"no audio files below .*/mixed; found 2 \.txt, "):
        manifest(folder, "--out", tmp_path / "out")


def test_headers_without_a_length_or_with_a_wrong_one_are_reported(tmp_path: Path) -> None:
    folder = tmp_path / "faults"
    folder.mkdir()
    samples = pcm16(speech_like(32_000)).numpy()
    soundfile.write(folder / "right.wav", samples, 16_000)
    shutil.copy(folder / "right.wav", folder / "streamed.wav")
    with (folder / "streamed.wav").open("r+b") as file:
        for place in (4, 40):
            file.seek(place)
            file.write(bytes(4))
    write_with_av(folder / "right.mkv", "flac", samples[:, None], 16_000)
    said = manifest(folder, "--out", tmp_path, "--valid", 0)
    assert set(lengths(tmp_path / "train.tsv").values()) == {32_000}
    assert "1 file with no length or a wrong one in the header" in said
    assert f"{folder / 'streamed.wav'}: no length in its header, decoded 2.000 s" in said
    assert (tmp_path / "headers.txt").read_text().count("\n") == 1


def test_files_that_pretraining_skips_by_default_are_counted(tmp_path: Path) -> None:
    """Report them for each manifest, with the key to change."""
    for number, seconds in enumerate([0.5, 1.9, 2.0, 3.0]):
        name = tmp_path / "audio" / f"{number}.wav"
        name.parent.mkdir(exist_ok=True)
        soundfile.write(name, np.zeros(round(seconds * 16_000), np.int16), 16_000)
    arguments = ["manifest", str(tmp_path / "audio"), "--out", str(tmp_path), "--valid", "0"]
    done = CliRunner().invoke(app, arguments)
    assert "2 of them (50%) are shorter than 2 s, which pretraining skips" in done.stderr
    assert "lower task.min_sample_size=32000" in done.stderr
    done = CliRunner().invoke(app, [*arguments, "--min-seconds", "2"])
    assert "shorter than 2 s, which" not in done.stderr
    for preset in ("mae_ast", "ssast_patch", "ssast_frame", "audio_mae"):
        settings = read_preset(config_dir() / "pretrain" / f"{preset}.yaml")
        assert settings["task"]["min_sample_size"] == PRETRAINING_S * 16_000


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """Files of 25.5, 20, 20.04, 3 and 10 s, at several rates."""
    folder = tmp_path / "recordings"
    folder.mkdir()
    for name, rate, seconds in (
        *(("a.flac", 44_100, 25.5), ("b.wav", 16_000, 20), ("c.wav", 8_000, 20.04)),
        *(("d.flac", 48_000, 3), ("e.wav", 22_050, 10)),
    ):
        soundfile.write(folder / name, np.zeros(round(seconds * rate), np.int16), rate)
    return folder


def rows(path: Path) -> list[str]:
    return path.read_text().splitlines()[1:]


def test_long_files_are_listed_as_segments(recordings: Path, tmp_path: Path) -> None:
    said = manifest(recordings, "--out", tmp_path, "--valid", 0, "--segment", 10)
    assert rows(tmp_path / "train.tsv") == [
        *("a.flac\t441000\t44100\t0", "a.flac\t441000\t44100\t441000"),
        "a.flac\t242550\t44100\t882000",
        *("b.wav\t160000\t16000\t0", "b.wav\t160000\t16000\t160000"),
        *("c.wav\t80000\t8000\t0", "c.wav\t80000\t8000\t80000"),  # 0.04 s are too short for a model
        *("d.flac\t144000\t48000", "e.wav\t220500\t22050"),
    ]
    assert "train.tsv: 9 clips of 5 files, 0.02 h" in said
    listed = Manifest.load(tmp_path / "train.tsv")
    assert [len(read_segment(listed.segment(row))) for row in range(9)] == [
        *(160_000, 160_000, 88_000, 160_000, 160_000, 160_000, 160_000, 48_000, 160_000)
    ]


def test_rest_of_a_long_file_has_the_minimum_length(recordings: Path, tmp_path: Path) -> None:
    arguments = ("--out", tmp_path, "--valid", 0, "--segment", 2.5, "--min-seconds")
    manifest(recordings, *arguments, 0.6)
    shortest = min(lengths(tmp_path / "train.tsv").values())
    assert shortest == 40_000
    manifest(recordings, *arguments, 0.5)
    assert sum("\t22050\t44100\t" in row for row in rows(tmp_path / "train.tsv")) == 1


def test_segments_of_a_file_are_in_one_split(recordings: Path, tmp_path: Path) -> None:
    manifest(recordings, "--out", tmp_path, "--valid", 0.5, "--segment", 1)
    paths = [
        {row.split("\t")[0] for row in rows(tmp_path / f"{n}.tsv")} for n in ("train", "valid")
    ]
    assert all(paths)
    assert not paths[0] & paths[1]
    assert len(paths[0] | paths[1]) == 5


@pytest.mark.parametrize("seconds", ["0", "-1", "0.04", "inf", "nan"])
def test_invalid_length_of_segments_is_refused(
    recordings: Path, tmp_path: Path, seconds: str
) -> None:
    with pytest.raises(ValueError, match=rf"segments of {seconds} s: expected at least 0\.045 s"):
        manifest(recordings, "--out", tmp_path / "out", "--segment", seconds)
    assert not (tmp_path / "out").exists()
