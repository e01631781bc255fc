"""Manifests: what is read, what is refused and with which words, and the cache of sample rates."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mae_ast.core.io import manifest as manifest_module
from mae_ast.core.io.audio import AudioInfo, read_audio
from mae_ast.core.io.manifest import Manifest, ManifestError, write_manifest


@pytest.fixture
def audio(tmp_path: Path) -> Callable[..., Path]:
    """``audio(name, rate, samples)`` writes a file under ``tmp_path/audio``."""

    def write(name: str, rate: int = 16_000, samples: int = 400) -> Path:
        path = tmp_path / "audio" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, np.zeros(samples, np.int16), rate)
        return path

    return write


@pytest.fixture
def manifest_of(tmp_path: Path) -> Callable[..., Path]:
    """``manifest_of(text)`` writes ``tmp_path/train.tsv``."""

    def write(text: str | bytes) -> Path:
        path = tmp_path / "train.tsv"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files whose headers are read."""
    names: list[str] = []
    original = manifest_module.probe_rate

    def probe(path: str) -> AudioInfo:
        names.append(os.path.basename(path))
        return original(path)

    monkeypatch.setattr(manifest_module, "probe_rate", probe)
    return names


def rows(manifest: Manifest) -> list[tuple[str, int, int]]:
    return [
        (manifest.row_path(row), int(manifest.lengths[row]), int(manifest.sample_rates[row]))
        for row in range(len(manifest))
    ]


# -- what is read -------------------------------------------------------------------------------


def test_two_columns(manifest_of):
    manifest = Manifest.read(manifest_of("/data\na.wav\t16000\nb/c.flac\t32000\n"))
    assert rows(manifest) == [("a.wav", 16_000, 0), ("b/c.flac", 32_000, 0)]
    assert manifest.root == "/data"
    assert manifest.audio_path(1) == "/data/b/c.flac"
    assert manifest.lengths.dtype == np.int64


def test_three_columns_and_both_mixed(manifest_of):
    manifest = Manifest.read(manifest_of("/data\na.wav\t48000\t48000\nb.wav\t5\nc.wav\t5\t\n"))
    assert rows(manifest) == [("a.wav", 48_000, 48_000), ("b.wav", 5, 0), ("c.wav", 5, 0)]


@pytest.mark.parametrize(
    "text",
    [
        "/data\r\na.wav\t7\r\nb.wav\t8\t44100\r\n",
        "/data\na.wav\t7\nb.wav\t8\t44100",
        "\ufeff/data\na.wav\t7\nb.wav\t8\t44100\n",
        "/data\n\na.wav\t7\n\n\nb.wav\t8\t44100\n\n",
        "/data/\r\na.wav\t7\n\r\nb.wav\t8\t44100",
    ],
    ids=["CRLF", "no last newline", "BOM", "blank lines", "all mixed"],
)
def test_ways_to_end_a_line(manifest_of, text):
    manifest = Manifest.read(manifest_of(text))
    assert rows(manifest) == [("a.wav", 7, 0), ("b.wav", 8, 44_100)]
    assert manifest.root == "/data"


def test_line_numbers_count_blank_lines(manifest_of):
    path = manifest_of("/data\n\na.wav\t7\n\nb.wav\t8\n")
    manifest = Manifest.read(path)
    assert [manifest.where(row) for row in range(2)] == [f"{path}:3", f"{path}:5"]


@pytest.mark.parametrize(
    "name", ["two words.wav", " leading.wav", "épée/音声 🎵.wav", "a\u2028b.wav", "a\x0bb.wav"]
)
def test_names_of_all_kinds(manifest_of, audio, name):
    audio(name)
    manifest = Manifest.load(manifest_of(f"audio\n{name}\t400\n{name}\t400\t16000\n"))
    for row in range(2):
        assert manifest.row_path(row) == name
        assert len(read_audio(manifest.audio_path(row))) == 400


def test_a_name_that_is_not_utf8(manifest_of):
    manifest = Manifest.read(manifest_of(b"/data\ncaf\xe9.wav\t400\nb.wav\t400\n"))
    assert os.fsencode(manifest.audio_path(0)) == b"/data/caf\xe9.wav"
    assert manifest.row_path(1) == "b.wav"


@pytest.mark.parametrize("root", ["audio", "./audio", "elsewhere/../audio", "audio/"])
def test_a_relative_root_lies_beside_the_manifest(manifest_of, audio, root, tmp_path, monkeypatch):
    audio("a.wav")
    path = manifest_of(f"{root}\na.wav\t400\n")
    other = tmp_path / "other"
    other.mkdir()
    monkeypatch.chdir(tmp_path)
    manifest = Manifest.load(path.name)
    monkeypatch.chdir(other)
    assert manifest.audio_path(0) == str(tmp_path / "audio" / "a.wav")


def test_paths_from_the_root_of_the_file_system(manifest_of, audio):
    path = audio("a.wav")
    manifest = Manifest.load(manifest_of(f"/\n{path}\t400\n{str(path)[1:]}\t400\n"))
    assert manifest.audio_path(0) == str(path)
    assert manifest.audio_path(1) == str(path)


def test_many_rows(manifest_of):
    lines = "".join(f"folder/{n}.flac\t{n + 1}\t{8000 + n}\n" for n in range(3_000))
    manifest = Manifest.read(manifest_of("/data\n" + lines))
    expected = [(f"folder/{n}.flac", n + 1, 8_000 + n) for n in range(3_000)]
    assert rows(manifest) == expected


# -- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "value"),
    [
        ("/data\na.wav\t7\nb.wav\n", 3, "'b.wav' has 1 column"),
        ("/data\na.wav 7\n", 2, "'a.wav 7' has 1 column"),
        ("/data\na.wav\t7\t8\t9\n", 2, "has 4 column"),
        ("/data\n\t7\n", 2, "path, tab, length"),
        ("/data\na.wav\tlong\n", 2, "'long' is no length in samples"),
        ("/data\na.wav\t\n", 2, "'' is no length in samples"),
        ("/data\na.wav\t1.5\n", 2, "'1.5' is no length in samples"),
        ("/data\na.wav\t0\n", 2, "'0' is no length in samples"),
        ("/data\n\n\na.wav\t-16000\n", 4, "'-16000' is no length in samples"),
        ("/data\na.wav\t7\tfast\n", 2, "'fast' is no sample rate"),
        ("/data\na.wav\t7\t0\n", 2, "'0' is no sample rate"),
        ("/data\na.wav\t7\t-1\n", 2, "'-1' is no sample rate"),
        ("a.wav\t16000\nb.wav\t7\n", 1, "'a.wav\\\\t16000' is no root folder"),
        ("\n/data\na.wav\t7\n", 1, "'' is no root folder"),
        ("\ufeff\na.wav\t7\n", 1, "'' is no root folder"),
    ],
)
def test_a_bad_line_is_named(manifest_of, text, line, value):
    path = manifest_of(text)
    with pytest.raises(ManifestError, match=f"{path}:{line}: .*{value}"):
        Manifest.read(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty; line 1 is the root"),
        ("/data\n", "lists no files"),
        ("/data", "lists no files"),
        ("/data\n\n\r\n", "lists no files"),
    ],
)
def test_a_manifest_without_rows_is_named(manifest_of, text, message):
    path = manifest_of(text)
    with pytest.raises(ManifestError, match=f"{path}: {message}"):
        Manifest.read(path)


@pytest.mark.parametrize("row", [f"a.wav\t{10**30}", f"a.wav\t7\t{10**12}"])
def test_numbers_that_are_too_large_are_named(manifest_of, row):
    path = manifest_of(f"/data\n{row}\n")
    with pytest.raises(ManifestError, match=f"{path}:2: '10+'"):
        Manifest.read(path)


def test_lengths_never_overflow(manifest_of):
    path = manifest_of(f"/data\na.wav\t{10**18}\t16000\n")
    try:
        num_samples = Manifest.read(path).num_samples
    except ManifestError:
        return
    assert num_samples.tolist() == [10**18]


def test_a_missing_manifest_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing\.tsv: no such manifest"):
        Manifest.load(tmp_path / "missing.tsv")


def test_a_missing_audio_file_is_named(manifest_of, audio):
    audio("a.wav")
    path = manifest_of("audio\na.wav\t400\n\ngone/b.wav\t400\n")
    with pytest.raises(ManifestError, match=rf"{path}:4: .*/audio/gone/b\.wav: no such file"):
        Manifest.load(path)


def test_a_folder_is_no_audio_file(manifest_of, audio):
    audio("folder.wav/a.wav")
    path = manifest_of("audio\nfolder.wav\t400\n")
    with pytest.raises(ManifestError, match=rf"{path}:2: .*folder\.wav: no such file"):
        Manifest.load(path)


def test_of_many_files_some_are_looked_at_first_and_last_among_them(
    manifest_of, audio, monkeypatch
):
    names = [f"{n}.wav" for n in range(50)]
    manifest = Manifest.read(manifest_of("audio\n" + "".join(f"{n}\t400\n" for n in names)))
    looked_at: list[str] = []

    def why_missing(path: str) -> str:
        looked_at.append(os.path.basename(path))
        return ""

    monkeypatch.setattr(manifest_module, "why_missing", why_missing)
    manifest.check_paths(at_most=10)
    assert len(set(looked_at)) == len(looked_at) == 10
    assert {"0.wav", "49.wav"} <= set(looked_at)
    looked_at.clear()
    manifest.check_paths()
    assert looked_at == names


# -- sample rates -------------------------------------------------------------------------------


def test_rates_are_read_once_and_kept(manifest_of, audio, probed):
    for name, rate in [("a.wav", 16_000), ("b.wav", 44_100), ("c.wav", 48_000)]:
        audio(name, rate)
    path = manifest_of("audio\na.wav\t400\nb.wav\t400\nc.wav\t400\n")
    first = Manifest.load(path)
    assert first.sample_rates.tolist() == [16_000, 44_100, 48_000]
    assert sorted(probed) == ["a.wav", "b.wav", "c.wav"]
    probed.clear()
    second = Manifest.load(path)
    assert second.sample_rates.tolist() == [16_000, 44_100, 48_000]
    assert second.sample_rates.dtype == np.int32
    assert probed == []
    assert {entry.name for entry in path.parent.iterdir()} == {
        "audio",
        "train.tsv",
        "train.tsv.rates.npz",
    }


def test_only_missing_rates_are_read(manifest_of, audio, probed):
    audio("a.wav", 8_000)
    audio("b.wav", 44_100)
    manifest = Manifest.load(manifest_of("audio\na.wav\t400\t22050\nb.wav\t400\n"))
    assert manifest.sample_rates.tolist() == [22_050, 44_100]
    assert probed == ["b.wav"]


def test_nothing_is_read_or_written_where_all_rates_are_given(manifest_of, audio, probed):
    audio("a.wav")
    path = manifest_of("audio\na.wav\t400\t16000\n")
    Manifest.load(path)
    assert probed == []
    assert not list(path.parent.glob("*.npz"))


def test_a_changed_manifest_is_read_anew(manifest_of, audio, probed):
    audio("a.wav", 8_000)
    audio("b.wav", 44_100)
    Manifest.load(manifest_of("audio\na.wav\t400\n"))
    assert Manifest.load(manifest_of("audio\nb.wav\t400\n")).sample_rates.tolist() == [44_100]
    assert probed == ["a.wav", "b.wav"]
    Manifest.load(manifest_of("audio\nb.wav\t400\n"))
    assert probed == ["a.wav", "b.wav"]


def damaged(kind: str, good: bytes) -> bytes:
    return {
        "text": b"not a cache",
        "cut": good[: len(good) // 2],
        "pickle": b"\x80\x04K\x01.",
        "zip header": b"PK\x03\x04" + bytes(60),
        "empty": b"",
        "one array": b"\x93NUMPY\x01\x00\x76\x00"
        + b"{'descr': '<f8', 'fortran_order': False, 'shape': (1,), }".ljust(117)
        + b"\n"
        + bytes(8),
    }[kind]


@pytest.mark.parametrize(
    "kind",
    [
        "text",
        "cut",
        "pickle",
        "zip header",
        "empty",
        "one array",
    ],
)
def test_a_damaged_cache_is_ignored_and_replaced(manifest_of, audio, probed, kind):
    audio("a.wav", 44_100)
    path = manifest_of("audio\na.wav\t400\n")
    Manifest.load(path)
    cache = path.with_name("train.tsv.rates.npz")
    cache.write_bytes(damaged(kind, cache.read_bytes()))
    assert Manifest.load(path).sample_rates.tolist() == [44_100]
    assert probed == ["a.wav"] * 2
    Manifest.load(path)
    assert probed == ["a.wav"] * 2


def test_a_cache_of_another_number_of_rows_is_ignored(manifest_of, audio, probed):
    audio("a.wav", 44_100)
    path = manifest_of("audio\na.wav\t400\n")
    Manifest.load(path)
    cache = path.with_name("train.tsv.rates.npz")
    with np.load(cache) as stored:
        digest = stored["digest"]
    np.savez(cache, digest=digest, sample_rates=np.array([1, 2, 3]))
    assert Manifest.load(path).sample_rates.tolist() == [44_100]
    assert len(probed) == 2


def refuse(monkeypatch: pytest.MonkeyPatch, code: int, calls: list[tuple[object, str]]) -> None:
    """Let calls fail as they do where nothing may be written."""
    for owner, name in calls:
        original = getattr(owner, name)

        def call(path, *args, _original=original, **kwargs):
            if ".npz" in str(path):
                raise OSError(code, os.strerror(code), str(path))
            return _original(path, *args, **kwargs)

        monkeypatch.setattr(owner, name, call)


@pytest.mark.parametrize(
    ("code", "calls"),
    [
        (errno.EACCES, [(Path, "open")]),
        (errno.ENOSPC, [(os, "replace")]),
        # There, the kernel refuses to delete even what does not exist.
        (errno.EROFS, [(Path, "open"), (Path, "touch"), (Path, "unlink")]),
    ],
    ids=["no permission", "no room", "read-only file system"],
)
def test_where_nothing_can_be_written_rates_are_read_each_time(
    manifest_of, audio, probed, monkeypatch, code, calls
):
    audio("a.wav", 44_100)
    path = manifest_of("audio\na.wav\t400\n")
    refuse(monkeypatch, code, calls)
    for times in (1, 2):
        assert Manifest.load(path).sample_rates.tolist() == [44_100]
        assert len(probed) == times
    assert {entry.name for entry in path.parent.iterdir()} == {"audio", "train.tsv"}


def test_a_header_that_cannot_be_read_gives_no_rate(manifest_of, audio):
    audio("a.wav", 44_100)
    audio("b.wav").write_bytes(b"garbage")
    manifest = Manifest.load(manifest_of("audio\na.wav\t44100\nb.wav\t16000\n"))
    assert manifest.sample_rates.tolist() == [44_100, 0]
    assert manifest.num_samples.tolist() == [16_000, 16_000]


def test_a_header_that_can_be_read_later_is_read_then(manifest_of, audio, probed):
    audio("a.wav", 44_100)
    audio("b.wav").write_bytes(b"garbage")
    path = manifest_of("audio\na.wav\t44100\nb.wav\t48000\n")
    assert Manifest.load(path).sample_rates.tolist() == [44_100, 0]
    audio("b.wav", 48_000)
    probed.clear()
    for _ in range(2):
        manifest = Manifest.load(path)
        assert manifest.sample_rates.tolist() == [44_100, 48_000]
        assert manifest.num_samples.tolist() == [16_000, 16_000]
    assert probed == ["b.wav"]


def test_progress_sees_each_header(manifest_of, audio):
    for name in ("a.wav", "b.wav", "c.wav"):
        audio(name)
    seen: list[tuple[int, list[int]]] = []

    def progress(rates, total):
        found = list(rates)
        seen.append((total, found))
        return found

    path = manifest_of("audio\na.wav\t400\nb.wav\t400\nc.wav\t400\n")
    Manifest.load(path, progress)
    Manifest.load(path, progress)
    assert seen == [(3, [16_000] * 3)]


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("samples", [4_800, 4_801, 9_999])
def test_length_at_16_khz_is_what_is_decoded(manifest_of, audio, rate, samples):
    audio("a.wav", rate, samples)
    manifest = Manifest.load(manifest_of(f"audio\na.wav\t{samples}\n"))
    assert manifest.num_samples.tolist() == [len(read_audio(manifest.audio_path(0)))]


def test_lengths_at_16_khz_in_numbers(manifest_of):
    text = "/data\na\t48000\t48000\nb\t44100\t44100\nc\t44101\t44100\nd\t7\t16000\ne\t7\n"
    assert Manifest.read(manifest_of(text)).num_samples.tolist() == [16_000, 16_000, 16_001, 7, 7]


# -- writing ------------------------------------------------------------------------------------


def test_what_is_written_is_read_again(tmp_path):
    content = [("a.wav", 7, 16_000), ("two words/épée 音.flac", 10**10, 44_100)]
    content.append((os.fsdecode(b"caf\xe9.wav"), 1, 8_000))
    path = tmp_path / "épée.tsv"
    for _ in range(2):
        write_manifest(path, "/data/some root", iter(content))
        manifest = Manifest.read(path)
        assert rows(manifest) == content
        assert manifest.root == "/data/some root"
        assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("name", ["a\tb.wav", "a\nb.wav", "a\rb.wav"])
def test_a_name_that_fits_no_manifest_is_refused(tmp_path, name):
    path = tmp_path / "train.tsv"
    write_manifest(path, "/data", [("old.wav", 1, 16_000)])
    with pytest.raises(ManifestError, match="a path with a tab or line break"):
        write_manifest(path, "/data", [("new.wav", 1, 16_000), (name, 1, 16_000)])
    assert rows(Manifest.read(path)) == [("old.wav", 1, 16_000)]


def test_a_refused_manifest_leaves_nothing_behind(tmp_path):
    with pytest.raises(ManifestError):
        write_manifest(tmp_path / "train.tsv", "/data", [("a\tb.wav", 1, 16_000)])
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("root", ["/da\tta", "/da\nta", ""])
def test_a_root_that_fits_no_manifest_is_refused(tmp_path, root):
    with pytest.raises(ManifestError):
        write_manifest(tmp_path / "train.tsv", root, [("a.wav", 1, 16_000)])
