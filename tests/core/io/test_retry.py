"""Reads are retried after transient errors, and only after those."""

from __future__ import annotations

import errno
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
import torch

from mae_ast.core.io import archive, retry
from mae_ast.core.io.audio import AudioError, probe_audio, probe_rate, read_audio, read_long_audio
from mae_ast.core.io.manifest import Manifest, ManifestError
from mae_ast.core.io.retry import is_transient, retried
from tests.sounds import write_with_av


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Requested waits in seconds; the tests do not sleep."""
    waits: list[float] = []
    monkeypatch.setattr(retry.time, "sleep", waits.append)
    return waits


def failing(error: Exception, times: int) -> tuple[Callable[[], str], list[int]]:
    attempts: list[int] = []

    @retried
    def read() -> str:
        attempts.append(len(attempts))
        if len(attempts) <= times:
            try:
                raise error
            except OSError as cause:
                raise AudioError("a.flac: cannot be decoded") from cause
        return "read"

    return read, attempts


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN])
def test_transient_error_is_retried_twice(number: int, waits: list[float]) -> None:
    for times in (1, 2):
        read, attempts = failing(OSError(number, "hiccup"), times)
        assert read() == "read"
        assert len(attempts) == times + 1
    assert waits == [0.1, 0.1, 0.4]
    read, attempts = failing(OSError(number, "hiccup"), 3)
    with pytest.raises(AudioError, match="cannot be decoded"):
        read()
    assert len(attempts) == 3


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.EISDIR])
def test_permanent_error_is_not_retried(number: int, waits: list[float]) -> None:
    read, attempts = failing(OSError(number, "no"), 1)
    with pytest.raises(AudioError):
        read()
    assert len(attempts) == 1
    assert waits == []


def test_decoder_errors_from_damage_are_not_transient() -> None:
    assert is_transient(soundfile.LibsndfileError(2))  # "System error"
    assert not is_transient(soundfile.LibsndfileError(1))  # unknown format
    with pytest.raises(OSError, match=r"I/O error|Input/output") as caught:
        av.error.err_check(-errno.EIO)
    assert not is_transient(caught.value)  # FFmpeg's error for a truncated packet


# --- reading audio --------------------------------------------------------------------------------

READS = pytest.mark.parametrize("read", [read_audio, read_long_audio, probe_audio, probe_rate])


@pytest.mark.parametrize("function", ["stat", "open", "pread"])
@READS
def test_reads_succeed_after_transient_file_system_errors(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    waits: list[float],
    read: Callable[[Path], Any],
    function: str,
) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(20_000), 16_000)
    original, left = getattr(os, function), [2]

    def stale(*arguments: Any, **options: Any) -> Any:
        if left[0] and (function == "pread" or str(arguments[0]).endswith("a.wav")):
            left[0] -= 1
            raise OSError(errno.ESTALE, "Stale file handle")
        return original(*arguments, **options)

    expected = read(tmp_path / "a.wav")
    monkeypatch.setattr(os, function, stale)
    found = read(tmp_path / "a.wav")
    assert torch.equal(found, expected) if isinstance(found, torch.Tensor) else found == expected
    assert waits == [0.1, 0.4]
    left[0] = 3
    with pytest.raises(AudioError, match=r"a\.wav: cannot be .*Stale file handle"):
        read(tmp_path / "a.wav")


@pytest.mark.skipif(
    int(av.__version__.split(".")[0]) < 15, reason="PyAV 14 drops errors of files read in Python"
)
@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
@pytest.mark.parametrize("kind", ["mp3", "ogg", "m4a", "mkv"])
@READS
def test_read_error_under_ffmpeg_is_not_treated_as_end_of_file(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    waits: list[float],
    read: Callable[[Path], Any],
    kind: str,
    number: int,
) -> None:
    path = tmp_path / f"a.{kind}"
    noise = (np.random.default_rng(0).standard_normal((160_000, 1)) * 3_000).astype(np.int16)
    if kind in ("mp3", "ogg"):
        soundfile.write(path, noise, 16_000)
    else:
        write_with_av(path, "aac", noise, 16_000)
    original, failures = os.pread, [0]

    def fails_near_the_end(descriptor: int, length: int, offset: int) -> bytes:
        if failures[0] and offset + length > path.stat().st_size // 2:
            failures[0] -= 1
            raise OSError(number, os.strerror(number))
        return original(descriptor, length, offset)

    expected = read(path)
    monkeypatch.setattr(os, "pread", fails_near_the_end)
    failures[0] = 2
    found = read(path)
    assert torch.equal(found, expected) if isinstance(found, torch.Tensor) else found == expected
    assert bool(waits) == (failures[0] < 2)
    failures[0] = 1_000
    if waits:  # reading only the beginning meets no error
        with pytest.raises(AudioError, match=rf"a\.{kind}: cannot be .*{os.strerror(number)}"):
            read(path)


def test_read_error_under_libsndfile_is_not_treated_as_end_of_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    """libsndfile does not report the system's error number."""
    soundfile.write(tmp_path / "a.flac", np.arange(20_000, dtype=np.int16), 16_000)
    expected = read_audio(tmp_path / "a.flac")
    original, left = soundfile.SoundFile.read, [2]

    def read(self: soundfile.SoundFile, *arguments: Any, **options: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise soundfile.LibsndfileError(2)
        return original(self, *arguments, **options)

    monkeypatch.setattr(soundfile.SoundFile, "read", read)
    assert torch.equal(read_audio(tmp_path / "a.flac"), expected)
    assert waits == [0.1, 0.4]


def test_stale_archive_is_reopened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(20_000), 16_000)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "a.wav", "a.wav")
    ((_, member),) = archive.list_members(tmp_path / "a.tar")
    expected = read_audio(str(member))
    held = archive._open_archive(str(tmp_path / "a.tar"))  # keeps its descriptor from being reused
    pread, stale = os.pread, held._fd

    def of_new_handles(descriptor: int, *arguments: int) -> bytes:
        if descriptor == stale:
            raise OSError(errno.ESTALE, "Stale file handle")
        return pread(descriptor, *arguments)

    monkeypatch.setattr(os, "pread", of_new_handles)
    assert torch.equal(read_audio(str(member)), expected)


def test_manifest_check_retries_transient_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(20_000), 16_000)
    (tmp_path / "a.tsv").write_text(".\na.wav\t20000\t16000\n")
    original, left = os.stat, [1]

    def stat(path: Any, **options: Any) -> os.stat_result:
        if left[0] and str(path).endswith("a.wav"):
            left[0] -= 1
            raise OSError(errno.EIO, "Input/output error")
        return original(path, **options)

    monkeypatch.setattr(os, "stat", stat)
    assert len(Manifest.load(tmp_path / "a.tsv")) == 1
    assert waits == [0.1]
    left[0] = 3
    with pytest.raises(ManifestError, match=r"a\.tsv:2: .*a\.wav: cannot be read \(Input/output"):
        Manifest.load(tmp_path / "a.tsv")
