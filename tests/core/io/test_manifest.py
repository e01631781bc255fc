"""Manifests are read and written, invalid ones are reported, and sample rates are cached."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mae_ast.core.io import manifest as manifest_module
from mae_ast.core.io.audio import AudioInfo, num_samples_16k, read_audio
from mae_ast.core.io.manifest import WHOLE, Manifest, ManifestError, write_manifest
from mae_ast.core.io.segment import Segment


@pytest.fixture
def audio(tmp_path: Path) -> Callable[..., Path]:
    """Function ``audio(name, rate, samples)`` that writes a file under ``tmp_path/audio``."""

    def write(name: str, rate: int = 16_000, samples: int = 400) -> Path:
        path = tmp_path / "audio" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, np.zeros(samples, np.int16), rate)
        return path

    return write


@pytest.fixture
def manifest_of(tmp_path: Path) -> Callable[..., Path]:
    """Function ``manifest_of(text)`` that writes ``tmp_path/train.tsv``."""

    def write(text: str | bytes) -> Path:
        path = tmp_path / "train.tsv"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files whose headers were read."""
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


# -- reading ------------------------------------------------------------------------------------


def test_reads_two_columns(manifest_of):
    manifest = Manifest.read(manifest_of("/data\na.wav\t16000\nb/c.flac\t32000\n"))
    assert rows(manifest) == [("a.wav", 16_000, 0), ("b/c.flac", 32_000, 0)]
    assert manifest.root == "/data"
    assert manifest.audio_path(1) == "/data/b/c.flac"
    assert manifest.lengths.dtype == np.int64


def test_reads_two_and_three_columns_mixed(manifest_of):
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
def test_reads_all_line_endings(manifest_of, text):
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
def test_reads_unusual_file_names(manifest_of, audio, name):
    audio(name)
    manifest = Manifest.load(manifest_of(f"audio\n{name}\t400\n{name}\t400\t16000\n"))
    for row in range(2):
        assert manifest.row_path(row) == name
        assert len(read_audio(manifest.audio_path(row))) == 400


def test_reads_file_names_that_are_not_utf8(manifest_of):
    manifest = Manifest.read(manifest_of(b"/data\ncaf\xe9.wav\t400\nb.wav\t400\n"))
    assert os.fsencode(manifest.audio_path(0)) == b"/data/caf\xe9.wav"
    assert manifest.row_path(1) == "b.wav"


@pytest.mark.parametrize("root", ["audio", "./audio", "elsewhere/../audio", "audio/"])
def test_relative_root_starts_at_the_manifest(manifest_of, audio, root, tmp_path, monkeypatch):
    audio("a.wav")
    path = manifest_of(f"{root}\na.wav\t400\n")
    other = tmp_path / "other"
    other.mkdir()
    monkeypatch.chdir(tmp_path)
    manifest = Manifest.load(path.name)
    monkeypatch.chdir(other)
    assert manifest.audio_path(0) == str(tmp_path / "audio" / "a.wav")


def test_reads_absolute_paths_with_root_slash(manifest_of, audio):
    path = audio("a.wav")
    manifest = Manifest.load(manifest_of(f"/\n{path}\t400\n{str(path)[1:]}\t400\n"))
    assert manifest.audio_path(0) == str(path)
    assert manifest.audio_path(1) == str(path)


def test_reads_many_rows(manifest_of):
    lines = "".join(f"folder/{n}.flac\t{n + 1}\t{8000 + n}\n" for n in range(3_000))
    manifest = Manifest.read(manifest_of("/data\n" + lines))
    expected = [(f"folder/{n}.flac", n + 1, 8_000 + n) for n in range(3_000)]
    assert rows(manifest) == expected


# -- segments -----------------------------------------------------------------------------------


def test_reads_starts(manifest_of):
    text = "/data\na.wav\t400\t8000\t1200\nb.wav\t5\na.wav\t7\t8000\t0\nc.wav\t9\t8000\t\n"
    manifest = Manifest.read(manifest_of(text))
    assert manifest.starts.tolist() == [1_200, WHOLE, 0, WHOLE]
    assert manifest.starts.dtype == np.int64
    assert manifest.take([2, 1]).starts.tolist() == [0, WHOLE]
    assert [manifest.segment(row) for row in range(4)] == [
        Segment("/data/a.wav", 2_400, 800),
        Segment("/data/b.wav"),
        Segment("/data/a.wav", 0, 14),
        Segment("/data/c.wav"),
    ]


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 48_000])
def test_adjacent_segments_have_the_length_of_the_whole(manifest_of, rate):
    sizes = [1, 1, 2, 3, 997, 4_411, 2_000_003]
    starts = np.cumsum([0, *sizes]).tolist()
    lines = [f"a\t{size}\t{rate}\t{start}\n" for size, start in zip(sizes, starts, strict=False)]
    manifest = Manifest.read(manifest_of("/data\n" + "".join(lines)))
    segments = [manifest.segment(row) for row in range(len(sizes))]
    assert [segment.num_samples for segment in segments] == manifest.num_samples.tolist()
    assert [segment.end for segment in segments[:-1]] == [segment.start for segment in segments[1:]]
    assert segments[-1].end == num_samples_16k(starts[-1], rate)


def test_lengths_of_segments_never_overflow(manifest_of):
    path = manifest_of(f"/data\na.wav\t{2**40}\t1000\t{2**48 - 1 - 2**40}\n")
    assert Manifest.read(path).num_samples.tolist() == [2**40 * 16]


def test_digest_includes_starts_only_if_there_are_any(manifest_of):
    manifest = Manifest.read(manifest_of("/data\na.wav\t400\t8000\nb.wav\t400\n"))
    # computed by a version without starts
    expected = "cdb5b8278be34089be1c36771b65012fa4f037ac77e3c0984395ff0f16077e32"
    assert manifest.digest().hex() == expected
    texts = (f"/data\na.wav\t400\t8000\t{start}\nb.wav\t400\n" for start in (0, 1))
    digests = {Manifest.read(manifest_of(text)).digest().hex() for text in texts}
    assert len(digests | {expected}) == 3


# -- invalid manifests --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "value"),
    [
        ("/data\na.wav\t7\nb.wav\n", 3, "'b.wav' has 1 column"),
        ("/data\na.wav 7\n", 2, "'a.wav 7' has 1 column"),
        ("/data\na.wav\t7\t8\t9\t10\n", 2, "has 5 columns; .*start in samples"),
        ("/data\n\t7\n", 2, "path, tab, length"),
        ("/data\na.wav\tlong\n", 2, "'long' is not a valid length in samples"),
        ("/data\na.wav\t\n", 2, "'' is not a valid length in samples"),
        ("/data\na.wav\t1.5\n", 2, "'1.5' is not a valid length in samples"),
        ("/data\na.wav\t0\n", 2, "'0' is not a valid length in samples"),
        ("/data\n\n\na.wav\t-16000\n", 4, "'-16000' is not a valid length in samples"),
        ("/data\na.wav\t7\tfast\n", 2, "'fast' is not a valid sample rate"),
        ("/data\na.wav\t7\t0\n", 2, "'0' is not a valid sample rate"),
        ("/data\na.wav\t7\t-1\n", 2, "'-1' is not a valid sample rate"),
        ("/data\na.wav\t7\t16000\t-1\n", 2, "'-1' is not a valid start in samples"),
        ("/data\na.wav\t7\t16000\t0.5\n", 2, "'0.5' is not a valid start in samples"),
        ("/data\na.wav\t7\t16000\tnow\n", 2, "expected an integer from 0"),
        ("/data\na.wav\t7\t\t8\n", 2, "a segment needs the sample rate"),
        (f"/data\na.wav\t7\t8000\t{2**48 - 5}\n", 2, "add up to more than"),
        ("a.wav\t16000\nb.wav\t7\n", 1, "'a.wav\\\\t16000' is not a root folder"),
        ("\n/data\na.wav\t7\n", 1, "'' is not a root folder"),
        ("\ufeff\na.wav\t7\n", 1, "'' is not a root folder"),
    ],
)
def test_invalid_line_is_reported(manifest_of, text, line, value):
    path = manifest_of(text)
    with pytest.raises(ManifestError, match=f"{path}:{line}: .*{value}"):
        Manifest.read(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty; expected the root folder on line 1"),
        ("/data\n", "lists no files"),
        ("/data", "lists no files"),
        ("/data\n\n\r\n", "lists no files"),
    ],
)
def test_manifest_without_rows_is_reported(manifest_of, text, message):
    path = manifest_of(text)
    with pytest.raises(ManifestError, match=f"{path}: {message}"):
        Manifest.read(path)


@pytest.mark.parametrize("row", [f"a.wav\t{10**30}", f"a.wav\t7\t{10**12}"])
def test_too_large_numbers_are_reported(manifest_of, row):
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


def test_missing_manifest_is_reported(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing\.tsv: no such manifest"):
        Manifest.load(tmp_path / "missing.tsv")


def test_missing_audio_file_is_reported(manifest_of, audio):
    audio("a.wav")
    path = manifest_of("audio\na.wav\t400\n\ngone/b.wav\t400\n")
    with pytest.raises(ManifestError, match=rf"{path}:4: .*/audio/gone/b\.wav: no such file"):
        Manifest.load(path)


def test_folder_in_place_of_an_audio_file_is_reported(manifest_of, audio):
    audio("folder.wav/a.wav")
    path = manifest_of("audio\nfolder.wav\t400\n")
    with pytest.raises(ManifestError, match=rf"{path}:2: .*folder\.wav: no such file"):
        Manifest.load(path)


def test_check_paths_samples_rows_including_first_and_last(manifest_of, audio, monkeypatch):
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


def test_rates_are_read_once_and_cached(manifest_of, audio, probed):
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


def test_no_headers_are_read_if_all_rates_are_given(manifest_of, audio, probed):
    audio("a.wav")
    path = manifest_of("audio\na.wav\t400\t16000\n")
    Manifest.load(path)
    assert probed == []
    assert not list(path.parent.glob("*.npz"))


def test_changed_manifest_invalidates_the_rate_cache(manifest_of, audio, probed):
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
def test_damaged_cache_is_ignored_and_replaced(manifest_of, audio, probed, kind):
    audio("a.wav", 44_100)
    path = manifest_of("audio\na.wav\t400\n")
    Manifest.load(path)
    cache = path.with_name("train.tsv.rates.npz")
    cache.write_bytes(damaged(kind, cache.read_bytes()))
    assert Manifest.load(path).sample_rates.tolist() == [44_100]
    assert probed == ["a.wav"] * 2
    Manifest.load(path)
    assert probed == ["a.wav"] * 2


def test_cache_with_another_number_of_rows_is_ignored(manifest_of, audio, probed):
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
    """Make calls on the cache file fail with an error code."""
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
        # On a read-only file system, unlink fails even for a file that does not exist.
        (errno.EROFS, [(Path, "open"), (Path, "touch"), (Path, "unlink")]),
    ],
    ids=["no permission", "no room", "read-only file system"],
)
def test_rates_are_read_each_time_if_the_cache_cannot_be_written(
    manifest_of, audio, probed, monkeypatch, code, calls
):
    audio("a.wav", 44_100)
    path = manifest_of("audio\na.wav\t400\n")
    refuse(monkeypatch, code, calls)
    for times in (1, 2):
        assert Manifest.load(path).sample_rates.tolist() == [44_100]
        assert len(probed) == times
    assert {entry.name for entry in path.parent.iterdir()} == {"audio", "train.tsv"}


def test_unreadable_header_gives_rate_zero(manifest_of, audio):
    audio("a.wav", 44_100)
    audio("b.wav").write_bytes(b"garbage")
    manifest = Manifest.load(manifest_of("audio\na.wav\t44100\nb.wav\t16000\n"))
    assert manifest.sample_rates.tolist() == [44_100, 0]
    assert manifest.num_samples.tolist() == [16_000, 16_000]


def test_header_that_becomes_readable_is_read(manifest_of, audio, probed):
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


def test_progress_wraps_each_header_once(manifest_of, audio):
    for name in ("a.wav", "b.wav", "c.wav"):
        audio(name)
    seen: list[tuple[int, list[int]]] = []

    def progress(rows, total):
        found = list(rows)
        seen.append((total, found))
        return found

    path = manifest_of("audio\na.wav\t400\nb.wav\t400\nc.wav\t400\n")
    Manifest.load(path, progress)
    Manifest.load(path, progress)
    assert seen == [(3, [0, 1, 2])]


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("samples", [4_800, 4_801, 9_999])
def test_num_samples_equals_decoded_length(manifest_of, audio, rate, samples):
    audio("a.wav", rate, samples)
    manifest = Manifest.load(manifest_of(f"audio\na.wav\t{samples}\n"))
    assert manifest.num_samples.tolist() == [len(read_audio(manifest.audio_path(0)))]


def test_num_samples_rounds_up(manifest_of):
    text = "/data\na\t48000\t48000\nb\t44100\t44100\nc\t44101\t44100\nd\t7\t16000\ne\t7\n"
    assert Manifest.read(manifest_of(text)).num_samples.tolist() == [16_000, 16_000, 16_001, 7, 7]


# -- writing ------------------------------------------------------------------------------------


def test_written_manifest_is_read_back(tmp_path):
    content = [("a.wav", 7, 16_000), ("two words/épée 音.flac", 10**10, 44_100)]
    content.append((os.fsdecode(b"caf\xe9.wav"), 1, 8_000))
    path = tmp_path / "épée.tsv"
    for _ in range(2):
        write_manifest(path, "/data/some root", iter(content))
        manifest = Manifest.read(path)
        assert rows(manifest) == content
        assert manifest.root == "/data/some root"
        assert os.listdir(tmp_path) == [path.name]


def test_written_starts_are_read_back(tmp_path):
    path = tmp_path / "train.tsv"
    content = [("a.wav", 7, 8_000, 2**40), ("a.wav", 7, 8_000, 0), ("b.wav", 7, 8_000, None)]
    write_manifest(path, "/data", [*content, ("c.wav", 7, 8_000)])
    assert path.read_text().splitlines()[1:] == [
        f"a.wav\t7\t8000\t{2**40}",
        "a.wav\t7\t8000\t0",
        "b.wav\t7\t8000",
        "c.wav\t7\t8000",
    ]
    assert Manifest.read(path).starts.tolist() == [2**40, 0, WHOLE, WHOLE]


def test_negative_start_is_refused(tmp_path):
    with pytest.raises(ManifestError, match=r"a\.wav: start -1; expected 0 or more"):
        write_manifest(tmp_path / "train.tsv", "/data", [("a.wav", 7, 8_000, -1)])
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["a\tb.wav", "a\nb.wav", "a\rb.wav"])
def test_path_with_tab_or_line_break_is_refused(tmp_path, name):
    path = tmp_path / "train.tsv"
    write_manifest(path, "/data", [("old.wav", 1, 16_000)])
    with pytest.raises(ManifestError, match=r"b\.wav'.*tab or line break"):
        write_manifest(path, "/data", [("new.wav", 1, 16_000), (name, 1, 16_000)])
    assert rows(Manifest.read(path)) == [("old.wav", 1, 16_000)]


def test_refused_manifest_leaves_no_file(tmp_path):
    with pytest.raises(ManifestError):
        write_manifest(tmp_path / "train.tsv", "/data", [("a\tb.wav", 1, 16_000)])
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("root", ["/da\tta", "/da\nta", ""])
def test_invalid_root_is_refused(tmp_path, root):
    with pytest.raises(ManifestError):
        write_manifest(tmp_path / "train.tsv", root, [("a.wav", 1, 16_000)])
