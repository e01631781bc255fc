"""Measure the data path: decoding by file format, and the data loader without training."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile
import torch

from mae_ast.bench.setting import Case, Column, Part, Row, Setting
from mae_ast.bench.steps import build_config
from mae_ast.bench.stopwatch import measure, summary
from mae_ast.core.frontend.collate import Collater
from mae_ast.core.io.audio import SAMPLE_RATE, read_audio
from mae_ast.core.io.manifest import Manifest, write_manifest

FILE_S, PART_S, START_S = 12, 10, 1
FILES = 64
BATCH = 32
# Format, sample rate, and the codec of files that FFmpeg writes.
FORMATS: tuple[tuple[str, int, str | None], ...] = (
    ("flac", SAMPLE_RATE, None),
    ("wav", SAMPLE_RATE, None),
    ("mp3", SAMPLE_RATE, None),
    ("ogg", SAMPLE_RATE, None),
    ("flac", 44_100, None),
    ("opus", 48_000, "libopus"),
    ("mkv", 48_000, "aac"),
    ("m4a", 44_100, "aac"),
)


def synthetic_speech(seconds: float, seed: int, rate: int = SAMPLE_RATE) -> np.ndarray:
    """Synthesize a gliding harmonic tone in syllables with a little noise, (L,) int16.

    It compresses about as well as speech.
    """
    rng = np.random.default_rng(seed)
    time_s = np.arange(round(seconds * rate)) / rate
    pitch = rng.uniform(90, 250) * (1 + 0.2 * np.sin(rng.uniform(2, 5) * time_s))
    phase = 2 * np.pi * np.cumsum(pitch / rate)
    voice = sum(np.sin(k * phase) / k for k in range(1, 12))
    loudness = np.clip(np.sin(2 * np.pi * rng.uniform(2, 4) * time_s), 0, 1)
    wave = 0.12 * voice * loudness + 0.004 * rng.standard_normal(len(time_s))
    return (wave * 32767).clip(-32768, 32767).astype(np.int16)


def write_corpus(folder: Path, files: int, rows: int) -> Path:
    """Write FLAC files of 12 s, and a ``train.tsv`` of ``rows`` rows that lists them repeatedly."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(files):
        path = folder / f"{number}.flac"
        if not path.exists():
            soundfile.write(path, synthetic_speech(FILE_S, number), SAMPLE_RATE)
    length = FILE_S * SAMPLE_RATE
    listed = ((f"{row % files}.flac", length, SAMPLE_RATE) for row in range(rows))
    write_manifest(folder / "train.tsv", ".", listed)
    return folder


def decoding_cases(setting: Setting) -> list[Case]:
    """Return a case for each file format."""
    return [
        {"name": f"{suffix}, {rate / 1000:g} kHz", "suffix": suffix, "rate": rate, "codec": codec}
        for suffix, rate, codec in FORMATS
    ]


def measure_decoding(case: Case, setting: Setting) -> Row:
    """Measure reading 10 s from the middle of a 12 s file, to 16 kHz int16, on one core."""
    torch.set_num_threads(1)  # as in a data loader worker
    path = Path(setting.folder) / f"sound_{case['rate']}.{case['suffix']}"
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = synthetic_speech(FILE_S, 0, case["rate"])
    if case["codec"] is None:
        soundfile.write(path, samples, case["rate"])
    else:
        _write_with_ffmpeg(path, samples, case["rate"], case["codec"])
    start, length = START_S * SAMPLE_RATE, PART_S * SAMPLE_RATE
    taken = measure(lambda: read_audio(path, start, length), setting.pick(cpu=1, gpu=1, quick=0.02))
    return {
        **case,
        **summary(taken),
        "ms_per_clip": 1000 * taken.median,
        "clips_per_s": 1 / taken.median,
        "kb_per_clip": path.stat().st_size / 1000 * PART_S / FILE_S,
    }


def _write_with_ffmpeg(path: Path, samples: np.ndarray, rate: int, codec: str) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        assert isinstance(stream, av.AudioStream)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        frame.sample_rate = rate
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)


def loading_cases(setting: Setting) -> list[Case]:
    """Return cases with the filterbank in the workers and without."""
    counts = sorted({1, setting.workers})
    return [
        {
            "name": "log-mel" if in_workers else "int16, filterbank on the device",
            "workers": workers,
            "fbank_in_workers": in_workers,
        }
        for workers in counts
        for in_workers in (False, True)
    ]


def measure_loading(case: Case, setting: Setting) -> Row:
    """Measure the clips per second that the data loader delivers."""
    from mae_ast.data.pretraining_dataset import PretrainingDataset  # fairseq

    workers = case["workers"]
    batches = int(setting.pick(cpu=30, gpu=60, quick=2)) * workers
    batch = 4 if setting.quick else BATCH
    files = 4 if setting.quick else FILES
    folder = write_corpus(Path(setting.folder) / "loading", files, batch * (batches + 2 * workers))
    config = build_config("mae_ast", {}, setting)
    dataset = PretrainingDataset(
        Manifest.load(folder / "train.tsv"),
        Collater(config, "chunk_mask", compute_fbank=case["fbank_in_workers"]),
        seed=1,
        shuffle=True,
        max_samples=PART_S * SAMPLE_RATE,
    )
    order = np.random.default_rng(0).permutation(len(dataset)).tolist()
    loader: torch.utils.data.DataLoader[Any] = torch.utils.data.DataLoader(
        dataset,
        batch_sampler=[order[i : i + batch] for i in range(0, len(order), batch)],
        collate_fn=dataset.collater,
        num_workers=workers,
        prefetch_factor=2,
    )
    batches_of = iter(loader)
    for _ in range(2 * workers):  # skip batches prepared while the workers started
        next(batches_of)
    begin = time.perf_counter()
    count = sum(1 for _ in batches_of)
    rate = batch * count / (time.perf_counter() - begin)
    return {**case, "batch": batch, "clips_per_s": rate, "clips_per_s_and_worker": rate / workers}


DECODING = Part(
    "Decoding",
    "10 s from the middle of a 12 s file to 16 kHz int16, one thread; synthetic speech.",
    decoding_cases,
    measure_decoding,
    (
        Column("", "name"),
        Column("ms/clip", "ms_per_clip", ".2f"),
        Column("clips/s per core", "clips_per_s", ".0f"),
        Column("kB/clip", "kb_per_clip", ".0f"),
    ),
    lambda setting: setting.pick(cpu=2, gpu=2, quick=0.2),
)
LOADING = Part(
    "Data path alone",
    "FLAC files to batches of 32 crops of 10 s (of 12 s) with masks, by the data set of "
    "pretraining in the workers of a data loader; the batches are discarded.",
    loading_cases,
    measure_loading,
    (
        Column("batches", "name"),
        Column("workers", "workers", "d"),
        Column("clips/s", "clips_per_s", ".0f"),
        Column("clips/s per worker", "clips_per_s_and_worker", ".0f"),
    ),
    lambda setting: setting.pick(cpu=12, gpu=15, quick=3),
)
