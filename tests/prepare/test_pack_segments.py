"""``mae-ast pack`` cuts segments out of their files."""

from __future__ import annotations

from pathlib import Path

import pytest
import soundfile
import torch
from typer.testing import CliRunner

from mae_ast.cli.main import app
from mae_ast.core.io import archive
from mae_ast.core.io.labels import Labels
from mae_ast.core.io.manifest import WHOLE, Manifest, write_manifest
from mae_ast.core.io.segment import read_segment
from mae_ast.prepare.pack import pack, sources_of, verify
from mae_ast.prepare.shard_writer import Shards
from tests.sounds import pcm16, speech_like

ROWS = [
    ("a/long.flac", 22_050, 44_100, 10_001),
    ("a/short.wav", 9_000, 16_000),
    ("a/long.flac", 22_050, 44_100, 0),
    ("a/long.flac", 44_000, 44_100, 32_051),
    ("a/short.wav", 4_000, 16_000, 5_000),
]


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Manifest of segments and a whole file, with labels."""
    folder = tmp_path / "data"
    (folder / "a").mkdir(parents=True)
    soundfile.write(
        folder / "a" / "long.flac", pcm16(speech_like(88_200, rate=44_100)).numpy(), 44_100
    )
    soundfile.write(folder / "a" / "short.wav", pcm16(speech_like(9_000, 1)).numpy(), 16_000)
    write_manifest(folder / "train.tsv", ".", ROWS)
    (folder / "train.lbl").write_text("".join(f"{n % 3}\n" for n in range(5)))
    Labels(("0", "1", "2"), ("zero", "one", "two")).write(folder / "labels.csv")
    return folder / "train.tsv"


def clips(path: Path) -> list[torch.Tensor]:
    manifest = Manifest.load(path)
    return [read_segment(manifest.segment(row)) for row in range(len(manifest))]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("options", [[], ["--transcode"]], ids=["copied", "transcoded"])
def test_segments_are_cut_out_bit_exactly(tmp_path, manifest, options):
    out = tmp_path / "out"
    result = CliRunner().invoke(app, ["pack", str(manifest), str(out), "--verify", *options])
    assert result.exit_code == 0, result.output
    assert "5 clips verified" in result.output
    packed, original = Manifest.load(out / "train.tsv"), Manifest.load(manifest)
    assert packed.starts.tolist() == [WHOLE] * 5
    assert packed.num_samples.tolist() == original.num_samples.tolist()
    assert all(map(torch.equal, clips(out / "train.tsv"), clips(manifest)))
    assert (out / "train.lbl").read_text() == manifest.with_suffix(".lbl").read_text()
    assert [name for name, _ in archive.list_members(out / "train-00000.tar")] == [
        "a/long_10001-32051.flac",
        "a/short.flac" if options else "a/short.wav",
        "a/long_0-22050.flac",
        "a/long_32051-76051.flac",
        "a/short_5000-9000.flac",
    ]
    moved = tmp_path / "data" / "a"
    moved.rename(tmp_path / "elsewhere")
    assert len(clips(out / "train.tsv")) == 5  # the shards do not need the files


def test_interrupted_packing_resumes_to_identical_files(tmp_path, manifest, monkeypatch):
    pack(Manifest.load(manifest), tmp_path / "whole", 30_000)
    original, calls = Shards.add, []

    def stopping(self: Shards, *arguments: object) -> None:
        calls.append(arguments)
        if len(calls) == 4:
            raise KeyboardInterrupt
        original(self, *arguments)

    listed = Manifest.load(manifest)
    with monkeypatch.context() as patched:
        patched.setattr(Shards, "add", stopping)
        with pytest.raises(KeyboardInterrupt):
            pack(listed, tmp_path / "out", 30_000)
    assert not (tmp_path / "out" / "train.tsv").exists()
    pack(listed, tmp_path / "out", 30_000)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_other_segments_of_the_same_files_are_refused(tmp_path, manifest):
    pack(Manifest.load(manifest), tmp_path / "out", 30_000)
    write_manifest(manifest, ".", [*ROWS[:-1], ("a/short.wav", 4_000, 16_000, 4_999)])
    with pytest.raises(ValueError, match=r"was started with content"):
        pack(Manifest.load(manifest), tmp_path / "out", 30_000)


def test_segment_that_cannot_be_read_is_skipped_with_its_label(tmp_path, manifest):
    listed = Manifest.read(manifest)
    path = Path(listed.audio_path(0))
    path.write_bytes(path.read_bytes()[:40_000])  # the last segment is missing, and others remain
    packed = pack(listed, tmp_path / "out", 30_000)
    assert packed.num_clips == 4
    assert packed.skipped_list is not None
    (line,) = packed.skipped_list.read_text().splitlines()
    assert line.startswith(f"{path} (0.7268125 to 1.7245625 s)\tthe segment from 0.7268125 to")
    assert (tmp_path / "out" / "train.lbl").read_text().split() == ["0", "1", "2", "1"]
    sources = sources_of(listed, packed)
    assert sources == [listed.segment(row) for row in (0, 1, 2, 4)]
    assert verify(Manifest.load(packed.manifest), sources=sources) == {}
