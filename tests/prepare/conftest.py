"""Write small data sets, and read the files prepared from them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mae_ast.core.io.labels import ClipLabels, Labels
from mae_ast.core.io.manifest import Manifest


def write_sound(path: Path, seconds: float = 0.1, rate: int = 16_000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    ramp = (np.arange(round(seconds * rate)) % 2**15).astype(np.int16)
    soundfile.write(path, ramp, rate, subtype="PCM_16")
    return path


def write_garbage(path: Path) -> Path:
    path.write_bytes(b"this is no sound " * 20)
    return path


@pytest.fixture
def rows() -> Callable[[Path, str], dict[str, tuple[str, ...]]]:
    """Function ``rows(folder, split)`` that returns path to mids of each clip, as in training."""

    def read(folder: Path, split: str) -> dict[str, tuple[str, ...]]:
        manifest = Manifest.load(folder / f"{split}.tsv")
        assert (manifest.sample_rates > 0).all()
        assert not (folder / f"{split}.tsv.rates.npz").exists()  # three columns: nothing to probe
        paths = [manifest.audio_path(row) for row in range(len(manifest))]
        assert len(set(paths)) == len(paths)
        if not (folder / f"{split}.lbl").exists():
            return dict.fromkeys(paths, ())
        labels = Labels.read(folder / "labels.csv")
        clips = ClipLabels.read(folder / f"{split}.lbl", labels, len(manifest))
        return {
            path: tuple(labels.mids[i] for i in clip)
            for path, clip in zip(paths, clips, strict=True)
        }

    return read


@pytest.fixture
def written() -> Callable[[Path], dict[str, bytes]]:
    """Function ``written(folder)`` that returns name to content of all files in a tree."""

    def read(folder: Path) -> dict[str, bytes]:
        return {
            str(path.relative_to(folder)): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }

    return read
