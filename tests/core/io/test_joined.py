"""Joined manifests: each row keeps the root, file, line, segment and rate cache of its manifest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from mae_ast.core.io import manifest as manifest_module
from mae_ast.core.io.joined import JoinedManifest, join, load_manifests, read_manifests
from mae_ast.core.io.manifest import Manifest, ManifestError
from mae_ast.core.io.segment import read_segment


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Manifests a/train.tsv, with a blank line and a segment, and b/train.tsv, without rates."""
    for name, rate in (("a", 16_000), ("b", 48_000)):
        (tmp_path / name / "sounds").mkdir(parents=True)
        for number in range(2):
            samples = np.full(rate, 100 * (number + 1) + (rate > 16_000), np.int16)
            soundfile.write(tmp_path / name / "sounds" / f"{number}.wav", samples, rate)
    (tmp_path / "a" / "train.tsv").write_text(
        "sounds\n\n0.wav\t16000\t16000\n1.wav\t4000\t16000\t8000\n"
    )
    (tmp_path / "b" / "train.tsv").write_text(".\nsounds/0.wav\t48000\nsounds/1.wav\t48000\n")
    return [tmp_path / name / "train.tsv" for name in "ab"]


def test_rows_name_their_own_files_and_lines(paths: list[Path], tmp_path: Path) -> None:
    rows = load_manifests(paths)
    assert isinstance(rows, JoinedManifest)
    assert rows.part.tolist() == [0, 0, 1, 1]
    assert [rows.where(row) for row in range(4)] == [
        *(f"{paths[0]}:3", f"{paths[0]}:4", f"{paths[1]}:2", f"{paths[1]}:3")
    ]
    files = [f"{tmp_path}/{name}/sounds/{number}.wav" for name in "ab" for number in (0, 1)]
    assert [rows.audio_path(row) for row in range(4)] == files
    assert rows.num_samples.tolist() == [16_000, 4_000, 16_000, 16_000]
    assert [len(read_segment(rows.segment(row), 0, 20_000)) for row in range(4)] == [
        *(16_000, 4_000, 16_000, 16_000)
    ]
    assert str(rows.path) == f"{paths[0]} and {paths[1]}"
    assert rows.path.stem == "train"


def test_taken_rows_keep_their_manifests(paths: list[Path]) -> None:
    rows = load_manifests(paths)
    taken = rows.take([3, 0])
    assert [taken.where(row) for row in range(2)] == [rows.where(3), rows.where(0)]
    assert [taken.audio_path(row) for row in range(2)] == [rows.audio_path(3), rows.audio_path(0)]
    assert taken.sample_rates.tolist() == [48_000, 16_000]
    assert len(rows) == 4
    assert taken.digest() != rows.take([0, 3]).digest() != rows.digest()


def test_sample_rates_are_cached_beside_each_manifest(
    paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load_manifests(paths)
    assert not paths[0].with_name("train.tsv.rates.npz").exists()  # it gives all rates
    assert paths[1].with_name("train.tsv.rates.npz").exists()
    monkeypatch.setattr(manifest_module, "probe_rate", lambda path: pytest.fail(path))
    again = read_manifests(paths)
    assert again.sample_rates.tolist() == [16_000, 16_000, 0, 0]
    again.probe_rates()
    assert again.sample_rates.tolist() == first.sample_rates.tolist() == [16_000] * 2 + [48_000] * 2


def test_the_digest_depends_on_paths_and_on_the_rates_of_all_rows(paths: list[Path]) -> None:
    """A rank that gets the rates from rank 0 has the same digest."""
    loaded, read = load_manifests(paths), read_manifests(paths)
    assert read.digest() != loaded.digest()
    read.sample_rates = loaded.sample_rates.copy()
    assert read.digest() == loaded.digest()
    paths[1].write_text(paths[1].read_text().replace("sounds/1", "sounds/0"))
    assert load_manifests(paths).digest() != loaded.digest()


def test_errors_name_the_manifest_and_its_root(paths: list[Path], tmp_path: Path) -> None:
    read = read_manifests(paths)
    (tmp_path / "b" / "sounds" / "1.wav").unlink()
    with pytest.raises(ManifestError, match=rf"^{paths[1]}:3: .*line 1 \({tmp_path}/b\)"):
        read.check_paths()
    paths[0].write_text(paths[0].read_text().replace("8000", "14000"))
    with pytest.raises(ManifestError, match=rf"^{paths[0]}:4: .*1\.wav: "):
        read_manifests(paths).check_segments()


def test_a_single_manifest_is_not_joined(paths: list[Path]) -> None:
    single = Manifest.read(paths[0])
    assert join([single]) is single
