"""Labelled waveforms computed from seeds; only their manifests are stored."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np

RATE = 16_000
PITCHES = {"low": 300, "middle": 1_000, "high": 3_500}  # class to Hz
SPLITS = {"train": 12, "valid": 4}  # clips


def waveform(seed: int, seconds: float | None = None) -> np.ndarray:
    """A gliding tone of class ``seed % 3`` in noise: (L,) int16, by default 0.8 to 1.1 s.

    ``RandomState`` gives the same integers in every version of NumPy.
    """
    random = np.random.RandomState(seed)
    length = random.randint(12_800, 17_600) if seconds is None else round(seconds * RATE)
    time = np.arange(length) / RATE
    pitch = list(PITCHES.values())[seed % 3] * (0.8 + random.randint(400) / 1000)
    phase = 2 * np.pi * pitch * (time + 0.01 * np.sin(2 * np.pi * 3 * time))
    loudness = 1 + np.cos(2 * np.pi * (2 + random.randint(5)) * time)
    return np.rint(3_000 * loudness * np.sin(phase) + random.randint(-150, 151, length)).astype(
        "<i2"
    )


def seeds(split: str) -> range:
    """Seeds of a split's clips."""
    first = 100 * list(SPLITS).index(split)
    return range(first, first + SPLITS[split])


def write_audio(folder: Path) -> None:
    """Write the clips of all splits as WAV files."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        for number, seed in enumerate(seeds(split)):
            with wave.open(str(folder / f"{split}_{number:02d}.wav"), "wb") as file:
                file.setnchannels(1)
                file.setsampwidth(2)
                file.setframerate(RATE)
                file.writeframes(waveform(seed).tobytes())


def write_manifests(folder: Path) -> None:
    """Write manifests and labels; only the one of the training clips has sample rates."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        rows = ["."]
        for number, seed in enumerate(seeds(split)):
            rate = f"\t{RATE}" if split == "train" else ""
            rows.append(f"{split}_{number:02d}.wav\t{len(waveform(seed))}{rate}")
        (folder / f"{split}.tsv").write_text("\n".join(rows) + "\n")
        labels = [list(PITCHES)[seed % 3] for seed in seeds(split)]
        (folder / f"{split}.lbl").write_text("\n".join(labels) + "\n")
    rows = [f'{index},{name},"{name} tone"' for index, name in enumerate(PITCHES)]
    (folder / "labels.csv").write_text("index,mid,display_name\n" + "\n".join(rows) + "\n")
