"""Files inside archives are found, verified and decoded like loose files."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from mae_ast.core.io import archive
from mae_ast.core.io.archive import (
    END,
    ArchiveError,
    Member,
    check_member,
    list_members,
    open_member,
    tar_header,
    why_missing,
)
from mae_ast.core.io.audio import AudioError, probe_audio, read_audio, read_long_audio
from mae_ast.core.io.manifest import Manifest, ManifestError
from tests.sounds import pcm16, speech_like, write_with_av

SECONDS = 1.3
# suffix, soundfile's subtype (capitals) or FFmpeg's codec, rate, channels
KINDS = [
    (".flac", "PCM_16", 16_000, 1),
    (".flac", "PCM_16", 44_100, 2),
    (".WAV", "PCM_16", 16_000, 1),
    (".wav", "FLOAT", 48_000, 1),
    (".ogg", "VORBIS", 16_000, 1),
    (".ogg", "OPUS", 48_000, 1),
    (".mp3", "MPEG_LAYER_III", 44_100, 1),
    (".mkv", "flac", 16_000, 1),
    (".mkv", "aac", 44_100, 2),
    (".m4a", "aac", 16_000, 1),
    (".webm", "libopus", 48_000, 1),
    (".opus", "libopus", 48_000, 1),
]
IDS = [f"{suffix[1:]}-{coding}-{rate}" for suffix, coding, rate, _ in KINDS]
EACH_KIND = pytest.mark.parametrize(("suffix", "coding", "rate", "channels"), KINDS, ids=IDS)


def write(path: Path, coding: str, rate: int, channels: int, seed: int = 0) -> Path:
    columns = [pcm16(speech_like(round(SECONDS * rate), seed + n, rate)) for n in range(channels)]
    samples = torch.stack(columns, dim=1).numpy()
    if coding.isupper():
        data = samples / 32768 if coding == "FLOAT" else samples
        soundfile.write(path, data, rate, subtype=coding)
    else:
        write_with_av(path, coding, samples, rate)
    return path


def pack(archive_path: Path, *files: Path, name: str = "{}") -> list[str]:
    """Write a tar with checksums; return the members' paths."""
    paths, block = [], b""
    for number, file in enumerate(files):
        content = file.read_bytes()
        block += tar_header(number, name.format(file.name), len(content), zlib.crc32(content))
        paths.append(f"{archive_path}:{len(block)}:{len(content)}")
        block += content + bytes(-len(content) % 512)
    archive_path.write_bytes(block + END)
    return paths


def flip(path: str | Path, place: int) -> None:
    with Path(path).open("r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 4]))


def flac(path: Path, seed: int = 0) -> Path:
    return write(path, "PCM_16", 16_000, 1, seed)


def test_member_paths_are_parsed_and_formatted() -> None:
    assert Member.parse("/a/b.tar:10:20") == ("/a/b.tar", 10, 20)
    assert Member.parse("x:1:y.tar:0:7") == ("x:1:y.tar", 0, 7)
    for loose in ("/a/12:30.mkv", "/a/b.tar", "b.tar:10", "b.tar:10:", "b.tar:-1:5", ":1:2"):
        assert Member.parse(loose) is None
    assert str(Member("a.tar", 1, 2)) == "a.tar:1:2"


@EACH_KIND
def test_members_decode_like_loose_files(tmp_path, suffix, coding, rate, channels):
    loose = write(tmp_path / f"näme{suffix}", coding, rate, channels)
    other = flac(tmp_path / "other.flac", seed=9)
    _, packed, _ = pack(tmp_path / "a.tar", other, loose, other)
    assert probe_audio(packed) == probe_audio(loose)
    assert torch.equal(read_long_audio(packed), read_long_audio(loose))
    for start, length in ((0, None), (0, 5_000), (7_777, 8_000), (12_345, None)):
        assert torch.equal(read_audio(packed, start, length), read_audio(loose, start, length))


@EACH_KIND
@pytest.mark.parametrize("kind", ["zip", "long names"])
def test_content_determines_the_format_without_a_name(
    tmp_path, suffix, coding, rate, channels, kind
):
    loose = write(tmp_path / f"loose{suffix}", coding, rate, channels)
    if kind == "zip":
        with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_STORED) as file:
            file.write(loose, "loose")
        place = (tmp_path / "a.zip").read_bytes().index(loose.read_bytes())
        packed = f"{tmp_path / 'a.zip'}:{place}:{loose.stat().st_size}"
    else:
        with tarfile.open(tmp_path / "a.tar", "w:", format=tarfile.GNU_FORMAT) as file:
            file.add(loose, "x" * 150 + suffix)
        ((_, member),) = list_members(tmp_path / "a.tar")
        packed = str(member)
    assert torch.equal(read_audio(packed), read_audio(loose))


def test_reading_part_of_a_long_member_skips_the_rest(tmp_path, monkeypatch):
    loose = [
        flac(tmp_path / "one.flac"),
        write(tmp_path / "two.wav", "PCM_16", 16_000, 1),
        write(tmp_path / "three.mkv", "flac", 16_000, 1),
    ]
    packed = pack(tmp_path / "a.tar", *loose)
    monkeypatch.setattr(archive, "_IN_MEMORY_BYTES", 1_000)
    monkeypatch.setattr(archive, "_CHUNK_BYTES", 512)
    for path, file in zip(packed, loose, strict=True):
        assert torch.equal(read_audio(path), read_audio(file))
        assert torch.equal(read_audio(path, 9_000, 2_000), read_audio(file, 9_000, 2_000))
        assert check_member(Member.parse(path))
    amount = 0
    read = archive._Archive.read

    def counting(self: Any, offset: int, length: int) -> bytes:
        nonlocal amount
        amount += length
        return read(self, offset, length)

    monkeypatch.setattr(archive._Archive, "read", counting)
    read_audio(packed[1], 10_000, 1_000)
    assert 2_000 < amount < loose[1].stat().st_size / 4
    member = Member.parse(packed[1])
    flip(tmp_path / "a.tar", member.offset + 20_000)
    with pytest.raises(ArchiveError, match=r"two\.wav: is damaged"):
        check_member(member)


@pytest.mark.parametrize("suffix", [".flac", ".wav"])
def test_flipped_bits_are_detected(tmp_path, suffix):
    loose = write(tmp_path / f"a{suffix}", "PCM_16", 16_000, 1)
    before, packed, after = pack(tmp_path / "a.tar", loose, loose, loose)
    member = Member.parse(packed)
    # Positions in the content, then in the header before it: name and length.
    header = member.offset - 512
    for place in (member.offset, member.offset + member.length - 1, header + 3, header + 130):
        flip(member.archive, place)
        with pytest.raises(AudioError, match=r"a\.tar:\d+:\d+: cannot be decoded"):
            read_audio(packed)
        for other in (before, after):
            assert torch.equal(read_audio(other), read_audio(loose))
        flip(member.archive, place)
    assert torch.equal(read_audio(packed), read_audio(loose))


def test_missing_members_are_reported(tmp_path):
    loose = flac(tmp_path / "a.flac")
    (packed,) = pack(tmp_path / "a.tar", loose)
    _, offset, length = Member.parse(packed)
    with pytest.raises(FileNotFoundError, match=r"b\.tar: no such archive"):
        read_audio(tmp_path / f"b.tar:{offset}:{length}")
    for place, words in (
        (f"{offset}:0", "is empty"),
        (f"{offset}:{length - 5}", f"has {length} bytes; the manifest belongs to another archive"),
        (f"{offset + 512}:{length}", "no file at this offset"),
        (f"3:{length}", "no file at this offset"),
        (f"{offset + length + 5_000}:10", "the archive ends after"),
    ):
        with pytest.raises(AudioError, match=words):
            read_audio(tmp_path / f"a.tar:{place}")
    (tmp_path / "c.tar").write_bytes((tmp_path / "a.tar").read_bytes()[: offset + 100])
    with pytest.raises(AudioError, match="the archive ends after"):
        read_audio(tmp_path / f"c.tar:{offset}:{length}")
    assert why_missing(packed) == ""
    assert why_missing(str(loose)) == ""
    assert why_missing(str(tmp_path)) == "no such file"
    assert why_missing(f"{tmp_path}/b.tar:1:2") == "no such archive"
    reason = why_missing(f"{tmp_path}/c.tar:{offset}:{length}")
    assert reason == f"beyond the end of the archive ({offset + 100} bytes)"


def test_manifest_reports_missing_archives(tmp_path):
    (packed,) = pack(tmp_path / "a.tar", flac(tmp_path / "a.flac"))
    rows = f".\n{Path(packed).name}\t20800\n"
    (tmp_path / "a.tsv").write_text(rows)
    manifest = Manifest.load(tmp_path / "a.tsv")
    assert manifest.sample_rates.tolist() == [16_000]
    assert len(read_audio(manifest.audio_path(0))) == 20_800
    (tmp_path / "b.tsv").write_text(rows.replace("a.tar", "b.tar"))
    with pytest.raises(ManifestError, match=r"b\.tsv:2: .*b\.tar:\d+:\d+: no such archive"):
        Manifest.load(tmp_path / "b.tsv")


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_reads_tars_written_by_tarfile(tmp_path, form):
    loose = flac(tmp_path / "a.flac")
    names = ["0001.flac", "0001.json", "deep/" * 8 + "ü" * 20 + "ber.flac", "0003.wav"]
    if form != tarfile.USTAR_FORMAT:
        names.append("long" * 60 + ".flac")
    with tarfile.open(tmp_path / "a.tar", "w:", format=form) as tar:
        tar.addfile(tarfile.TarInfo("folder"))
        for name in names:
            info = tarfile.TarInfo(name)
            info.mtime = 1.5
            content = b"{}" if name.endswith("json") else loose.read_bytes()
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    listed = dict(list_members(tmp_path / "a.tar"))
    assert list(listed) == ["folder", *names]
    for name in names:
        if name.endswith("flac"):
            assert torch.equal(read_audio(str(listed[name])), read_audio(loose))
            assert check_member(listed[name]) is False


def test_tarfile_reads_our_tars(tmp_path):
    files = [flac(tmp_path / "a.flac"), flac(tmp_path / ("ü" * 90 + ".flac"))]
    pack(tmp_path / "a.tar", *files, name="böx/" * 150 + "{}")
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert tar.getnames() == ["böx/" * 150 + file.name for file in files]
        for info, file in zip(tar.getmembers(), files, strict=True):
            assert tar.extractfile(info).read() == file.read_bytes()
    for _, member in list_members(tmp_path / "a.tar"):
        assert check_member(member)


def test_damaged_tar_lists_members_before_the_damage(tmp_path):
    files = [flac(tmp_path / f"{number}.flac") for number in range(3)]
    packed = [Member.parse(path) for path in pack(tmp_path / "a.tar", *files)]

    found: list[str] = []

    def list_all() -> None:
        found.clear()
        for name, _ in list_members(tmp_path / "a.tar"):
            found.append(name)

    list_all()
    assert found == ["0.flac", "1.flac", "2.flac"]
    flip(tmp_path / "a.tar", packed[1].offset - 400)  # in the header's name
    with pytest.raises(ArchiveError, match=r"a\.tar: is .*damaged"):
        list_all()
    assert found == ["0.flac"]
    flip(tmp_path / "a.tar", packed[1].offset - 400)
    os.truncate(tmp_path / "a.tar", packed[2].offset + 100)
    with pytest.raises(ArchiveError, match=r"truncated within 2\.flac"):
        list_all()
    assert found == ["0.flac", "1.flac"]
    for content in (b"", b"no tar" * 1_000, (files[0]).read_bytes()):
        (tmp_path / "b.tar").write_bytes(content)
        with pytest.raises(ArchiveError, match="is not an uncompressed tar"):
            list(list_members(tmp_path / "b.tar"))
    with tarfile.open(tmp_path / "c.tar", "w:gz") as tar:
        tar.add(files[0], "0.flac")
    with pytest.raises(ArchiveError, match="is not an uncompressed tar"):
        list(list_members(tmp_path / "c.tar"))


# --- one handle per archive and process -----------------------------------------------------------


def _read_all(paths: list[str]) -> tuple[list[bytes], int]:
    """Return the samples, and the number of archives that the process has open."""
    samples = [read_audio(path).numpy().tobytes() for path in paths]
    links = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
    return samples, sum(os.path.realpath(link).endswith(".tar") for link in links)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts handles in /proc")
def test_processes_and_threads_share_one_handle_per_archive(tmp_path):
    files = [flac(tmp_path / f"{number}.flac", number) for number in range(12)]
    paths = pack(tmp_path / "a.tar", *files[:6]) + pack(tmp_path / "b.tar", *files[6:])
    expected = [read_audio(file).numpy().tobytes() for file in files]
    archive.close_archives()
    read_audio(paths[0])  # one is open in the parent and inherited by its children
    orders = [np.random.default_rng(seed).permutation(12) for seed in range(4)]
    with get_context("fork").Pool(2) as pool:
        read = pool.map(_read_all, [[paths[n] for n in order] for order in orders])
        for order, (samples, opened) in zip(orders, read, strict=True):
            assert samples == [expected[n] for n in order]
            assert opened == 2
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda p: read_audio(p).numpy().tobytes(), paths * 3)) == (
            expected * 3
        )
    assert _read_all(paths)[1] == 2


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts handles in /proc")
def test_handles_beyond_the_limit_are_closed(tmp_path):
    (first,) = pack(tmp_path / "0.tar", flac(tmp_path / "a.flac"))
    place = first.partition(":")[2]
    paths = [f"{tmp_path / str(number)}.tar:{place}" for number in range(archive._MAX_OPEN + 9)]
    for path in paths[1:]:
        shutil.copyfile(tmp_path / "0.tar", path.partition(":")[0])
    archive.close_archives()
    before = len(os.listdir("/proc/self/fd"))
    for path in paths:
        open_member(Member.parse(path))
    assert len(os.listdir("/proc/self/fd")) - before == archive._MAX_OPEN
    archive.close_archives()
    assert len(os.listdir("/proc/self/fd")) == before
