"""Clips of a manifest in batches: size, order, skipped clips, progress."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch

from mae_ast.core.io.audio import AudioError, read_audio
from mae_ast.core.io.manifest import Manifest, write_manifest
from mae_ast.evaluate.read_clips import Batch, check_any, for_each_batch
from tests.sounds import speech_like

LENGTHS = (8_000, 3_000, 300, 8_000, 20_000, 5_000, 5_000, 400)
BAD, SHORT = 3, 2  # rows of a file without audio and of a clip that is too short
MIN_SAMPLES = 400


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    for number, length in enumerate(LENGTHS):
        wave = speech_like(length, number)
        soundfile.write(tmp_path / f"{number}.wav", wave.numpy(), 16_000, subtype="PCM_16")
    (tmp_path / f"{BAD}.wav").write_bytes(b"RIFFnothing")
    rows = [(f"{number}.wav", length, 16_000) for number, length in enumerate(LENGTHS)]
    write_manifest(tmp_path / "valid.tsv", ".", rows)
    return Manifest.read(tmp_path / "valid.tsv")


def batches_of(manifest: Manifest, rows: list[int] | None = None, **options: Any) -> list[Batch]:
    found: list[Batch] = []
    for_each_batch(manifest, MIN_SAMPLES, found.append, rows, **options)
    return found


def test_batches_hold_the_samples_of_consecutive_clips(manifest: Manifest) -> None:
    batches = batches_of(manifest, batch_samples=16_000)
    assert [batch.rows for batch in batches] == [[0, 1, 2, 3], [4], [5, 6, 7]]
    assert [list(batch.clips) for batch in batches] == [[0, 1], [4], [5, 6, 7]]
    for batch in batches:
        for row, samples in batch.clips.items():
            assert torch.equal(samples, read_audio(manifest.audio_path(row)))


def test_rows_are_read_in_the_given_order_and_cut_to_their_beginning(manifest: Manifest) -> None:
    rows = [6, BAD, 4, 0]
    (batch,) = batches_of(manifest, rows, max_samples=1_000)
    assert batch.rows == rows
    assert list(batch.clips) == [6, 4, 0]
    for row, samples in batch.clips.items():
        assert torch.equal(samples, read_audio(manifest.audio_path(row), 0, 1_000))


@pytest.mark.parametrize("level", [logging.WARNING, logging.DEBUG])
def test_skipped_clips_are_logged_with_file_and_line(
    manifest: Manifest, caplog: pytest.LogCaptureFixture, level: int
) -> None:
    caplog.set_level(logging.DEBUG)
    batches_of(manifest, level=level)
    records = [record for record in caplog.records if "skipped" in record.getMessage()]
    assert {record.levelno for record in records} == {level}
    bad, short = sorted(record.getMessage() for record in records)[::-1]
    assert bad.startswith(f"{manifest.path}:{BAD + 2}: skipped: ")
    assert short.startswith(f"{manifest.path}:{SHORT + 2}: skipped: ")
    assert "300 samples at 16 kHz are shorter than one patch (400)" in short


def test_progress_counts_clips_whose_batch_was_used(manifest: Manifest) -> None:
    counted: list[int] = []

    def progress(items: Iterable[int], total: int) -> Iterator[int]:
        assert total == len(LENGTHS)
        for item in items:
            yield item
            counted.append(item)

    seen: list[tuple[list[int], list[int]]] = []

    def use(batch: Batch) -> None:
        seen.append((batch.rows, list(counted)))

    for_each_batch(manifest, MIN_SAMPLES, use, batch_samples=16_000, progress=progress)
    assert seen == [([0, 1, 2, 3], []), ([4], [0, 1, 2, 3]), ([5, 6, 7], [0, 1, 2, 3, 4])]
    assert counted == list(range(len(LENGTHS)))


def test_progress_ends_before_an_error_is_reported(manifest: Manifest) -> None:
    ended = []

    def progress(items: Iterable[int], total: int) -> Iterator[int]:
        try:
            yield from items
        finally:
            ended.append(total)

    def use(batch: Batch) -> None:
        raise ValueError("diverged")

    with pytest.raises(ValueError, match="diverged") as raised:  # keeps all frames alive
        for_each_batch(manifest, MIN_SAMPLES, use, progress=progress)
    assert ended == [len(LENGTHS)]
    assert raised.traceback


def test_a_set_without_usable_clips_is_refused(manifest: Manifest) -> None:
    check_any(1, manifest)
    with pytest.raises(AudioError, match=r"valid\.tsv: none of 8 clips can be used"):
        check_any(0, manifest)
