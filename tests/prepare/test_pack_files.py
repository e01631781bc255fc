"""Files are packed in pieces: constant memory, damaged files, and read and write errors."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mae_ast.core.io import archive, retry
from mae_ast.core.io.audio import read_audio
from mae_ast.core.io.manifest import Manifest, write_manifest
from mae_ast.prepare import pack_files
from mae_ast.prepare.pack import pack, sources_of, verify
from tests.sounds import pcm16, speech_like

MIB = 2**20


def wav_of(path: Path, num_bytes: int, seed: int = 0) -> int:
    """Write noise at 16 kHz and return its number of samples."""
    samples = np.random.default_rng(seed).integers(-3_000, 3_000, num_bytes // 2).astype(np.int16)
    soundfile.write(path, samples, 16_000)
    return len(samples)


def manifest_of(folder: Path, sizes: dict[str, int]) -> Manifest:
    """Write WAV files of the given sizes in bytes, and return their manifest."""
    rows = [(name, wav_of(folder / name, size), 16_000) for name, size in sizes.items()]
    write_manifest(folder / "train.tsv", ".", rows)
    return Manifest.load(folder / "train.tsv")


def test_memory_does_not_depend_on_the_length_of_files(tmp_path: Path) -> None:
    """Ten files of 20 MiB, eight at a time."""
    manifest = manifest_of(tmp_path, {"0.wav": 20 * MIB})
    for number in range(1, 10):
        os.link(tmp_path / "0.wav", tmp_path / f"{number}.wav")
    length = int(manifest.lengths[0])
    write_manifest(
        tmp_path / "train.tsv", ".", [(f"{number}.wav", length, 16_000) for number in range(10)]
    )
    manifest = Manifest.load(tmp_path / "train.tsv")
    tracemalloc.start()
    packed = pack(manifest, tmp_path / "out", 2**30)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert packed.num_clips == 10
    assert peak < 20 * MIB
    assert verify(Manifest.load(packed.manifest)) == {}


TRANSCODE = """
import sys
from pathlib import Path
import torch
from mae_ast.bench.machine import peak_memory
from mae_ast.core.io.manifest import Manifest
from mae_ast.prepare.pack import pack

torch.set_num_threads(1)
pack(Manifest.load(sys.argv[1]), Path(sys.argv[2]), 2**30, transcode=True, jobs=1)
print(1024 * peak_memory())
"""


@pytest.mark.slow
def test_memory_does_not_depend_on_the_length_of_a_transcoded_file(tmp_path: Path) -> None:
    """20 minutes at 48 kHz in stereo are 220 MiB of samples."""
    peaks = []
    for minutes in (1, 20):
        folder = tmp_path / f"of {minutes}"
        folder.mkdir()
        block = np.zeros((48_000 * 60, 2), dtype=np.int16)
        with soundfile.SoundFile(folder / "a.flac", "w", 48_000, 2) as file:
            for _ in range(minutes):
                file.write(block)
        write_manifest(folder / "a.tsv", ".", [("a.flac", 48_000 * 60 * minutes, 48_000)])
        command = [sys.executable, "-c", TRANSCODE, str(folder / "a.tsv"), str(folder / "out")]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
        peaks.append(float(done.stdout))
        (row,) = Manifest.load(folder / "out" / "a.tsv").lengths.tolist()
        assert row == 16_000 * 60 * minutes
    assert peaks[1] - peaks[0] < 60


@pytest.mark.parametrize("transcode", [False, True])
def test_transient_read_errors_do_not_change_the_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, transcode: bool
) -> None:
    manifest = manifest_of(tmp_path, {"a.wav": 9 * MIB, "b.wav": 100_000})
    pack(manifest, tmp_path / "whole", 2**30, transcode)
    monkeypatch.setattr(retry.time, "sleep", lambda seconds: None)
    left = {"open": 2} if transcode else {"stat": 2}
    for function in list(left):
        original = getattr(os, function)

        def failing(*arguments, function=function, original=original, **options):
            if left[function] and str(arguments[0]).endswith("a.wav"):
                left[function] -= 1
                raise OSError(errno.ESTALE, "Stale file handle")
            return original(*arguments, **options)

        monkeypatch.setattr(os, function, failing)
    plain, left["file"] = open, 2

    def open_file(path, *arguments, **options):
        if left["file"] and str(path).endswith("a.wav"):
            left["file"] -= 1
            raise OSError(errno.EIO, "Input/output error")
        return plain(path, *arguments, **options)

    monkeypatch.setattr(pack_files, "open", open_file, raising=False)
    packed = pack(manifest, tmp_path / "out", 2**30, transcode)
    assert left == ({"open": 0, "file": 2} if transcode else {"stat": 0, "file": 0})
    assert packed.skipped_list is None
    for name in ("train-00000.tar", "train.tsv"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("transcode", [False, True])
def test_persistent_read_error_stops_packing_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, transcode: bool
) -> None:
    """The file is not skipped, since it exists."""
    manifest = manifest_of(tmp_path, {"a.wav": 100_000, "b.wav": 9 * MIB, "c.wav": 100_000})
    pack(manifest, tmp_path / "whole", 2**30, transcode)
    stat = os.stat

    def failing(path, *arguments, **options):
        if str(path).endswith("b.wav"):
            raise OSError(errno.EIO, "Input/output error")
        return stat(path, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(retry.time, "sleep", lambda seconds: None)
        patched.setattr(os, "stat", failing)
        with pytest.raises(OSError, match=r"train\.tsv:3: .*b\.wav: cannot be read .*resumes"):
            pack(manifest, tmp_path / "out", 2**30, transcode, jobs=1)
    pack(manifest, tmp_path / "out", 2**30, transcode)
    for name in ("train-00000.tar", "train.tsv"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_damaged_member_is_skipped_when_packed_again(tmp_path: Path) -> None:
    manifest = manifest_of(tmp_path, {"a.wav": 9 * MIB, "b.wav": 100_000})
    packed = pack(manifest, tmp_path / "one", 2**30)
    members = [member for _, member in archive.list_members(tmp_path / "one" / "train-00000.tar")]
    with (tmp_path / "one" / "train-00000.tar").open("r+b") as file:
        file.seek(members[0].offset + 5 * MIB)
        file.write(b"damage")
    again = pack(Manifest.load(packed.manifest), tmp_path / "two", 2**30)
    assert again.num_clips == 1
    assert again.skipped_list is not None
    assert "a.wav: is damaged" in again.skipped_list.read_text()
    with tarfile.open(tmp_path / "two" / "train-00000.tar") as tar:
        assert tar.getnames() == ["b.wav"]
    assert verify(Manifest.load(again.manifest)) == {}


def test_file_that_changes_size_stops_packing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = manifest_of(tmp_path, {"a.wav": 100_000})
    find = pack_files._find
    monkeypatch.setattr(
        pack_files, "_find", lambda *path: find(*path)._replace(num_bytes=100_000 - 2)
    )
    with pytest.raises(OSError, match=r"a\.wav: changed from 99998 to 100044 bytes"):
        pack(manifest, tmp_path / "out", 2**30)


def test_full_disk_while_transcoding_is_reported(
    small_disk: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    manifest = manifest_of(tmp_path, {"a.wav": 20 * MIB})
    with pytest.raises(OSError, match=r"^/.*: could not be written \(No space left on device\)"):
        pack(manifest, small_disk, 2**30, transcode=True)
    assert capfd.readouterr().err == ""
    assert not (small_disk / "train.tsv").exists()


def test_verify_compares_transcoded_files_with_their_sources(tmp_path: Path) -> None:
    """One file has a too small length in its header, and one cannot be decoded."""
    rows = []
    for number in range(4):
        samples = pcm16(speech_like(20_000 + 1_000 * number, number)).numpy()
        soundfile.write(tmp_path / f"{number}.flac", samples, 16_000)
        rows.append((f"{number}.flac", len(samples), 16_000))
    with (tmp_path / "2.flac").open("r+b") as file:  # the number of samples in its header
        file.seek(22)
        file.write((10_000).to_bytes(4, "big"))
    (tmp_path / "1.flac").write_bytes(b"no music" * 99)
    write_manifest(tmp_path / "train.tsv", ".", rows)
    manifest = Manifest.load(tmp_path / "train.tsv")
    packed = pack(manifest, tmp_path / "out", 2**30, transcode=True)
    listed = Manifest.load(packed.manifest)
    assert listed.lengths.tolist() == [20_000, 22_000, 23_000]
    sources = sources_of(manifest, packed)
    assert sources == [manifest.segment(row) for row in (0, 2, 3)]
    assert verify(listed, sources=sources) == {}

    longer = np.append(read_audio(sources[1].path).numpy(), np.int16(1))
    soundfile.write(sources[1].path, longer, 16_000)
    found = verify(listed, sources=sources)
    assert found == {1: f"its samples differ from those of {sources[1]}"}
