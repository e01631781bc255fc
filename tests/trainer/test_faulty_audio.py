"""Files with a wrong header, suffix or content, in every command that reads audio."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from mae_ast.cli.main import app
from mae_ast.core.io.audio import read_audio
from mae_ast.core.io.manifest import Manifest
from mae_ast.core.models.classifier import HeadConfig
from tests.systems.cases import FIRST
from tests.systems.test_checkpoints import finetuned_file

from .conftest import ONLY_TRAINING

FAULTS = Path(__file__).parents[1] / "faulty_audio"
OUT_OF_RANGE = "float_in_int16_range.wav"  # listed in manifests, but every read is an error
SECONDS = {
    "flac_total_too_small.flac": 3.0,
    "flac_unknown_total.flac": 3.0,
    OUT_OF_RANGE: 1.0,
    "gsm.wav": 3.0,
    "live_without_duration.webm": 3.0,
    "m4a_named.mp3": 3.0,
    "one_damaged_packet.m4a": 3.0,
    "raw_vbr_24s.aac": 24.0,
    "second_track_default.mkv": 3.0,
    "two_links_6s.ogg": 6.0,
    "vbr_without_xing_20s.mp3": 20.0,
    "wav_data_size_0.wav": 3.0,
    "webm_named.wav": 3.0,
}
PACKET_S = 0.07  # lossy codecs pad to whole packets
WRONG_HEADERS = {
    *("flac_total_too_small.flac", "flac_unknown_total.flac", "live_without_duration.webm"),
    *("raw_vbr_24s.aac", "two_links_6s.ogg", "vbr_without_xing_20s.mp3", "wav_data_size_0.wav"),
}
GOOD = sorted(SECONDS.keys() - {OUT_OF_RANGE})


def run(*arguments: object) -> Result:
    """Run a command in this process."""
    result = CliRunner().invoke(app, list(map(str, arguments)))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the files and the manifest that ``mae-ast manifest`` writes for them."""
    out = tmp_path_factory.mktemp("listed")
    for name in SECONDS:
        (out / name).symlink_to(FAULTS / name)
    assert run("manifest", out, "--out", out, "--valid", 0).exit_code == 0
    return out


def lengths(path: Path) -> list[float]:
    """Return the length of each row in seconds."""
    return (Manifest.load(path).num_samples / 16_000).tolist()


def test_manifest_lists_true_lengths(listed: Path) -> None:
    manifest = Manifest.load(listed / "train.tsv")
    names = [manifest.row_path(row) for row in range(len(manifest))]
    assert names == sorted(SECONDS)
    for name, length in zip(names, lengths(listed / "train.tsv"), strict=True):
        assert length == pytest.approx(SECONDS[name], abs=PACKET_S), name
        if name != OUT_OF_RANGE:
            decoded = len(read_audio(FAULTS / name)) / 16_000
            assert decoded == pytest.approx(length, abs=PACKET_S), name
    noted = (listed / "headers.txt").read_text().splitlines()
    assert {Path(line.split("\t")[0]).name for line in noted} == WRONG_HEADERS
    assert not (listed / "left_out.txt").exists()


def test_packed_clips_decode_to_the_same_samples(listed: Path, tmp_path: Path) -> None:
    result = run("pack", listed / "train.tsv", tmp_path, "--verify")
    assert "13 clips verified" in result.output
    packed = Manifest.load(tmp_path / "train.tsv")
    for row, name in enumerate(sorted(SECONDS)):
        if name != OUT_OF_RANGE:
            whole = read_audio(packed.audio_path(row))
            assert torch.equal(whole, read_audio(FAULTS / name)), name
            part = read_audio(packed.audio_path(row), 20_000, 9_000)
            difference = part.int() - whole[20_000:29_000].int()
            assert difference.abs().max() <= 1, name  # rounding when resampling


def test_transcoded_clips_have_their_true_length(listed: Path, tmp_path: Path) -> None:
    result = run("pack", listed / "train.tsv", tmp_path, "--transcode", "--verify")
    assert "12 clips verified" in result.output
    packed = Manifest.load(tmp_path / "train.tsv")
    assert len(packed) == len(GOOD)
    for row, name in enumerate(GOOD):
        samples = read_audio(packed.audio_path(row))
        assert torch.equal(samples, read_audio(FAULTS / name)), name
        assert packed.lengths[row] == len(samples)
        assert len(samples) / 16_000 == pytest.approx(SECONDS[name], abs=PACKET_S), name
    (skipped,) = (tmp_path / "train.left_out.txt").read_text().splitlines()
    assert OUT_OF_RANGE in skipped
    assert "16-bit values" in skipped


def test_stats_skips_samples_out_of_range(listed: Path, caplog: pytest.LogCaptureFixture) -> None:
    output = run("stats", listed / "train.tsv").output
    (message,) = caplog.messages
    assert message.startswith(f"{listed / 'train.tsv'}:")
    assert f": skipped: {listed / OUT_OF_RANGE}: contains float samples up to" in message
    hours = sum(SECONDS[name] for name in GOOD) / 3600
    assert f"12 clips, {hours:.2f} h, 1 skipped as bad" in output
    assert "model.input_stats=fixed" in output


def test_pretraining_reads_all_crops(
    listed: Path, train_here: Callable[..., list[dict[str, str]]], caplog: pytest.LogCaptureFixture
) -> None:
    updates = train_here(
        listed,
        *("dataset.num_workers=0", "dataset.max_tokens=null", "dataset.batch_size=1"),
        *("optimization.max_epoch=3", *ONLY_TRAINING),
    )
    assert len(updates) == 3 * len(SECONDS)
    (skipped,) = [
        r.getMessage() for r in caplog.records if r.getMessage().startswith("skipping bad file")
    ]
    assert OUT_OF_RANGE in skipped
    epochs = [json.loads(r.getMessage()) for r in caplog.records if r.name == "train"]
    assert [round(float(epoch["train_bsz"]) * len(SECONDS)) for epoch in epochs] == [len(GOOD)] * 3
    # All crops have their full length of 1 s.
    assert float(updates[-1]["audio_hours"]) == pytest.approx(3 * len(GOOD) / 3600, abs=1e-4)


def test_predict_reads_all_files(tmp_path: Path) -> None:
    classifier = tmp_path / "run"
    finetuned_file(FIRST["ssast"], classifier, HeadConfig(2))
    result = run("predict", classifier, *(FAULTS / name for name in SECONDS), "--top", 1)
    predicted = [line.split("\t")[0] for line in result.output.splitlines() if "\t" in line]
    assert sorted(Path(path).name for path in predicted) == GOOD
    assert "16-bit values" in result.output
    assert "1 of 13 files" in str(result.exception.code if result.exception else "")
