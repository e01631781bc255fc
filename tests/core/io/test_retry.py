"""Reads that fail for a moment are made again; others are not."""

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
from mae_ast.core.io.retry import may_pass, retried
from tests.sounds import write_with_av


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits in seconds, which are skipped."""
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
def test_an_error_that_may_pass_is_retried_twice(number: int, waits: list[float]) -> None:
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
def test_an_error_that_stays_is_not_retried(number: int, waits: list[float]) -> None:
    read, attempts = failing(OSError(number, "no"), 1)
    with pytest.raises(AudioError):
        read()
    assert len(attempts) == 1
    assert waits == []


def test_errors_of_decoders_are_told_from_damage() -> None:
    assert may_pass(soundfile.LibsndfileError(2))  # "System error"
    assert not may_pass(soundfile.LibsndfileError(1))  # unknown format
    with pytest.raises(OSError, match=r"I/O error|Input/output") as caught:
        av.error.err_check(-errno.EIO)
    assert not may_pass(caught.value)  # as FFmpeg calls it where a packet is cut


# --- where audio is read --------------------------------------------------------------------------

READS = pytest.mark.parametrize("read", [read_audio, read_long_audio, probe_audio, probe_rate])


@pytest.mark.parametrize("function", ["stat", "open", "pread"])
@READS
def test_a_hiccup_of_the_file_system_is_not_noticed(
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
def test_an_error_that_ffmpeg_meets_is_not_taken_for_the_end(
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
    if waits:  # what reads the beginning alone meets no error
        with pytest.raises(AudioError, match=rf"a\.{kind}: cannot be .*{os.strerror(number)}"):
            read(path)


def test_an_error_that_libsndfile_meets_is_not_taken_for_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    """It does not pass on what the system said."""
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


def test_an_archive_that_is_stale_is_opened_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(20_000), 16_000)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "a.wav", "a.wav")
    ((_, member),) = archive.list_members(tmp_path / "a.tar")
    expected = read_audio(str(member))
    held = archive._opened(str(tmp_path / "a.tar"))  # no other file gets its number meanwhile
    pread, stale = os.pread, held._fd

    def of_new_handles(descriptor: int, *arguments: int) -> bytes:
        if descriptor == stale:
            raise OSError(errno.ESTALE, "Stale file handle")
        return pread(descriptor, *arguments)

    monkeypatch.setattr(os, "pread", of_new_handles)
    assert torch.equal(read_audio(str(member)), expected)


def test_a_manifest_is_not_refused_for_a_hiccup(
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
