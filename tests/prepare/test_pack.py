"""``mae-ast pack``: contents of shards, resuming, labels, and damaged files."""

from __future__ import annotations

import json
import os
import re
import signal
import tarfile
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from typer.testing import CliRunner

from mae_ast.cli.main import app
from mae_ast.core.io import archive
from mae_ast.core.io.atomic import file_lock
from mae_ast.core.io.audio import read_audio
from mae_ast.core.io.labels import ClipLabels, LabelError, Labels
from mae_ast.core.io.manifest import Manifest, write_manifest
from mae_ast.prepare.pack import pack, parse_bytes, verify
from mae_ast.prepare.shard_writer import Shards
from tests.sounds import pcm16, speech_like, write_with_av

SHARD = 60_000  # bytes; two or three clips


@pytest.fixture
def loose(tmp_path: Path) -> Path:
    """Manifest of nine files in several formats, with labels."""
    folder = tmp_path / "löose" / "müsic"
    folder.mkdir(parents=True)
    rows = []
    for number, suffix in enumerate((".flac", ".wav", ".mkv") * 3):
        rate = (16_000, 16_000, 44_100)[number % 3] if number < 6 else 8_000
        samples = pcm16(speech_like(round((0.5 + number / 20) * rate), number, rate)).numpy()
        path = folder / f"{number} ünd{suffix}"
        if suffix == ".mkv":
            write_with_av(path, "flac", samples[:, None], rate)
        else:
            soundfile.write(path, samples, rate)
        rows.append((f"müsic/{path.name}", len(samples), rate))
    write_manifest(tmp_path / "löose" / "train.tsv", ".", rows)
    (tmp_path / "löose" / "train.lbl").write_text("".join(f"/m/{n % 2}\n" for n in range(9)))
    Labels(("/m/0", "/m/1"), ("Süd", "Nord")).write(tmp_path / "löose" / "labels.csv")
    return tmp_path / "löose" / "train.tsv"


def run(*arguments: object) -> str:
    """Run the command in this process and return its output."""
    result = CliRunner().invoke(app, list(map(str, arguments)))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def waveforms(path: Path) -> list[torch.Tensor]:
    manifest = Manifest.load(path)
    return [read_audio(manifest.audio_path(row)) for row in range(len(manifest))]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def same(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> bool:
    return len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))


def flip(path: str, place: int) -> None:
    with open(path, "r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1]))


@pytest.mark.parametrize("transcode", [False, True])
def test_packed_clips_are_bit_exact(tmp_path: Path, loose: Path, transcode: bool) -> None:
    options = ["--transcode"] if transcode else []
    out = tmp_path / "out"
    said = run("pack", loose, out, "--shard-size", "60K", "--verify", *options)
    shards = sorted(out.glob("train-*.tar"))
    assert len(shards) > 2
    assert f"9 clips in {len(shards)} shards" in said
    assert "9 clips verified" in said
    assert all(shard.stat().st_size <= 60 * 1024 for shard in shards)
    assert same(waveforms(out / "train.tsv"), waveforms(loose))

    was, now = Manifest.load(loose), Manifest.load(out / "train.tsv")
    assert now.num_samples.tolist() == was.num_samples.tolist()
    assert [now.row_path(row).count(":") for row in range(9)] == [2] * 9
    if transcode:
        assert set(now.sample_rates) == {16_000}
    names = [name for shard in shards for name, _ in archive.list_members(shard)]
    expected = [was.row_path(row) for row in range(9)]
    assert names == [re.sub(r"\..*", ".flac", path) if transcode else path for path in expected]

    for name in ("train.lbl", "labels.csv"):
        assert (out / name).read_bytes() == loose.with_name(name).read_bytes()
    assert not list(out.glob("*.part*")) + list(out.glob(".*"))

    moved = out.rename(tmp_path / "elsewhere")
    assert same(waveforms(moved / "train.tsv"), waveforms(loose))
    before = contents(moved)
    run("pack", loose, moved, "--shard-size", "60K", *options)  # everything is already packed
    assert contents(moved) == before


def test_packed_shards_can_be_packed_again(tmp_path: Path, loose: Path) -> None:
    run("pack", loose, tmp_path / "one", "--shard-size", "60K")
    run("pack", tmp_path / "one" / "train.tsv", tmp_path / "two")
    run("pack", tmp_path / "one" / "train.tsv", tmp_path / "three", "--transcode")
    run("pack", loose, tmp_path / "direct")
    assert (
        contents(tmp_path / "two")["train-00000.tar"]
        == (contents(tmp_path / "direct")["train-00000.tar"])
    )
    assert same(waveforms(tmp_path / "three" / "train.tsv"), waveforms(loose))


def _pack_until(
    manifest: Path, out: Path, method: str, number: int, before: bool, transcode: bool
) -> None:
    """Pack, and kill the process before or after the given call of a method of ``Shards``."""
    original: Callable[..., Any] = getattr(Shards, method)
    calls = 0

    def dying(self: Shards, *arguments: object) -> None:
        nonlocal calls
        calls += 1
        if not before:
            original(self, *arguments)
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        if before:
            original(self, *arguments)

    setattr(Shards, method, dying)
    pack(Manifest.load(manifest), out, SHARD, transcode)


@pytest.mark.parametrize(
    ("method", "number", "before"),
    [
        ("_append_to_journal", 1, True),
        ("_append_to_journal", 5, True),
        ("_append_to_journal", 5, False),
        ("_append_to_journal", 9, False),
        ("_end_shard", 1, True),
        ("_end_shard", 2, False),
        ("end", 1, False),
        ("remove_journal", 1, True),
    ],
)
def test_resumes_after_sigkill_to_identical_files(
    tmp_path: Path, loose: Path, method: str, number: int, before: bool
) -> None:
    pack(Manifest.load(loose), tmp_path / "whole", SHARD)
    out = tmp_path / "out"
    process = get_context("fork").Process(
        target=_pack_until, args=(loose, out, method, number, before, False)
    )
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    if method != "remove_journal":
        assert not (out / "train.tsv").exists()
    done: list[int] = []

    def counting(rows: Any, total: int) -> Any:
        done.append(total)
        return rows

    pack(Manifest.load(loose), out, SHARD, progress=counting)
    assert contents(out) == contents(tmp_path / "whole")
    rows_done = {"_append_to_journal": number - before, "end": 9, "remove_journal": 9}
    if method in rows_done:
        assert done == [9 - rows_done[method]]


@pytest.mark.parametrize("lost", ["bytes", "a part of the file", "the file", "half a line"])
def test_rows_with_lost_data_are_packed_again(tmp_path: Path, loose: Path, lost: str) -> None:
    pack(Manifest.load(loose), tmp_path / "whole", SHARD)
    out = tmp_path / "out"
    process = get_context("fork").Process(
        target=_pack_until, args=(loose, out, "_append_to_journal", 2, False, False)
    )
    process.start()
    process.join(60)
    (part,) = out.glob(".*.part.tar")
    if lost == "bytes":
        flip(str(part), part.stat().st_size - 3_000)
    elif lost == "a part of the file":
        os.truncate(part, part.stat().st_size - 3_000)
    elif lost == "the file":
        part.unlink()
    else:
        with (out / ".train.rows.part").open("ab") as journal:
            journal.write(b"0\t12")
    pack(Manifest.load(loose), out, SHARD)
    assert contents(out) == contents(tmp_path / "whole")


def test_output_folder_with_different_shards_is_refused(tmp_path: Path, loose: Path) -> None:
    out = tmp_path / "out"
    manifest = Manifest.load(loose)
    pack(manifest, out, SHARD)
    with pytest.raises(ValueError, match=rf"with shard_bytes {SHARD}, not {SHARD + 1}; "):
        pack(manifest, out, SHARD + 1)
    with pytest.raises(
        ValueError, match=r"with transcode False, not True; remove train\.pack\.json"
    ):
        pack(manifest, out, SHARD, transcode=True)
    loose.write_text(loose.read_text() + "müsic/0 ünd.flac\t100\t16000\n")
    loose.with_suffix(".lbl").write_text(loose.with_suffix(".lbl").read_text() + "/m/0\n")
    with pytest.raises(ValueError, match=r"started with content '\w{16}', not"):
        pack(Manifest.load(loose), out, SHARD)
    with pytest.raises(ValueError, match=r"not packed from this manifest; choose another folder"):
        pack(Manifest.load(loose), loose.parent, SHARD)


def test_changed_labels_are_detected(tmp_path: Path, loose: Path) -> None:
    pack(Manifest.load(loose), tmp_path / "out", SHARD)
    labels = loose.with_suffix(".lbl")
    lines = labels.read_text().splitlines(keepends=True)
    labels.write_text("".join([*lines[1:], "/m/0\n"]))
    with pytest.raises(ValueError, match=r"started with labels '\w{16}', not '\w{16}'"):
        pack(Manifest.load(loose), tmp_path / "out", SHARD)


def test_description_without_labels_is_accepted(tmp_path: Path, loose: Path) -> None:
    packed = pack(Manifest.load(loose), tmp_path / "out", SHARD)
    description = tmp_path / "out" / "train.pack.json"
    known = json.loads(description.read_text())
    del known["labels"]
    description.write_text(json.dumps(known))
    assert pack(Manifest.load(loose), tmp_path / "out", SHARD) == packed


def test_splits_with_a_common_prefix_share_a_folder(tmp_path: Path, loose: Path) -> None:
    other = loose.with_name("train-clean.tsv")
    other.write_bytes(loose.read_bytes())
    pack(Manifest.load(other), tmp_path / "out", SHARD)
    assert pack(Manifest.load(loose), tmp_path / "out", SHARD).num_clips == len(
        Manifest.load(loose)
    )


def test_concurrent_packing_is_refused(tmp_path: Path, loose: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with (
        file_lock(out / "train.tsv"),
        pytest.raises(ValueError, match=r"train\.tsv: .*another process"),
    ):
        pack(Manifest.load(loose), out, SHARD)
    assert not (out / "train.pack.json").exists()
    pack(Manifest.load(loose), out, SHARD)


def test_mismatched_labels_are_refused(tmp_path: Path, loose: Path) -> None:
    manifest = Manifest.load(loose)
    pack(manifest, tmp_path / "out", SHARD)
    loose.with_name("labels.csv").write_text("index,mid,display_name\n0,x,y\n")
    with pytest.raises(LabelError, match=r"out/labels\.csv: differs from .*löose/labels\.csv"):
        pack(manifest, tmp_path / "out", SHARD)
    loose.with_suffix(".lbl").write_text("/m/0\n")
    with pytest.raises(LabelError, match=r"train\.lbl: has 1 line, but train\.tsv lists 9"):
        pack(manifest, tmp_path / "new", SHARD)
    assert not (tmp_path / "new").exists()


def test_bad_files_are_skipped_with_their_labels(tmp_path: Path, loose: Path) -> None:
    manifest = Manifest.load(loose)
    Path(manifest.audio_path(3)).write_bytes(b"no music" * 50)
    Path(manifest.audio_path(4)).write_bytes(b"")
    Path(manifest.audio_path(8)).unlink()

    as_they_are = pack(manifest, tmp_path / "kept", SHARD)
    assert as_they_are.num_clips == 8
    packed = Manifest.load(as_they_are.manifest)
    for row, words in ((3, "cannot be decoded"), (4, "is empty")):
        with pytest.raises(ValueError, match=words):
            read_audio(packed.audio_path(row))
    assert verify(packed) == {}

    transcoded = pack(manifest, tmp_path / "transcoded", SHARD, transcode=True)
    assert transcoded.num_clips == 6
    assert transcoded.skipped_list is not None
    lines = transcoded.skipped_list.read_text().splitlines()
    assert [line.split("\t")[0] for line in lines] == [manifest.audio_path(n) for n in (3, 4, 8)]
    for line, words in zip(lines, ("cannot be decoded", "is empty", "no such file"), strict=True):
        assert words in line.split("\t")[1]
    labels = ClipLabels.read(
        tmp_path / "transcoded" / "train.lbl",
        Labels.read(tmp_path / "transcoded" / "labels.csv"),
        num_clips=6,
    )
    assert [int(labels[row][0]) for row in range(6)] == [0, 1, 0, 1, 0, 1]
    rows = [0, 1, 2, 5, 6, 7]
    expected = [read_audio(manifest.audio_path(row)) for row in rows]
    assert same(waveforms(transcoded.manifest), expected)

    for row in rows:
        Path(manifest.audio_path(row)).unlink()
    with pytest.raises(ValueError, match=r"none of 9 files .*; the first, .*such file"):
        pack(manifest, tmp_path / "none", SHARD, transcode=True)


def test_verify_finds_a_flipped_byte(tmp_path: Path, loose: Path) -> None:
    out = tmp_path / "out"
    run("pack", loose, out, "--shard-size", "60K")
    packed = Manifest.load(out / "train.tsv")
    for row in (1, 7):  # WAV files, in which the decoder detects no damage
        _, offset, length = archive.Member.parse(packed.audio_path(row)) or (0, 0, 0)
        flip(packed.audio_path(row).partition(":")[0], offset + length // 2)
    damaged = verify(packed)
    assert set(damaged) == {1, 7}
    assert "1 ünd.wav: is damaged" in damaged[1]
    with pytest.raises(ValueError, match=r"train\.tsv: 2 of 9 clips are damaged"):
        run("pack", out / "train.tsv", "--verify")
    with pytest.raises(ValueError, match="is not inside an archive"):
        run("pack", loose, "--verify")


def test_full_disk_is_reported_and_packing_resumes(
    small_disk: Path, tmp_path: Path, loose: Path
) -> None:
    manifest = Manifest.load(loose)
    with pytest.raises(OSError, match=r"^/.*: could not be written \(No space left on device\)"):
        pack(manifest, small_disk, 1 << 20)
    assert not (small_disk / "train.tsv").exists()
    assert not list(small_disk.glob("train-*.tar"))
    for path in small_disk.iterdir():  # continue on a larger disk
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / path.name).write_bytes(path.read_bytes())
    pack(manifest, tmp_path / "out", 1 << 20)
    assert same(waveforms(tmp_path / "out" / "train.tsv"), waveforms(loose))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1G", 2**30), ("500M", 500 * 2**20), ("1.5GiB", 3 * 2**29), ("10kb", 10_240), ("7", 7)],
)
def test_parse_bytes_accepts_units(text: str, expected: int) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "G", "0", "-1G", "1X", "one"])
def test_parse_bytes_refuses_invalid_sizes(text: str) -> None:
    with pytest.raises(
        ValueError, match=f"--shard-size {re.escape(text)}; expected a size such as"
    ):
        parse_bytes(text)


def test_missing_out_and_invalid_jobs_are_refused(loose: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="OUT is missing"):
        run("pack", loose)
    refused = CliRunner().invoke(app, ["pack", str(loose), str(tmp_path), "--jobs", "0"])
    assert refused.exit_code == 2
    assert "--jobs" in refused.output


# --- tars written by other programs ---------------------------------------------------------------


def test_manifest_of_a_folder_of_tars_lists_their_clips(tmp_path: Path, loose: Path) -> None:
    manifest = Manifest.load(loose)
    shards = tmp_path / "shärds"
    shards.mkdir()
    for shard in range(3):
        form = tarfile.PAX_FORMAT if shard else tarfile.GNU_FORMAT
        with tarfile.open(shards / f"{shard:06}.tar", "w:", format=form) as tar:
            for row in range(3 * shard, 3 * shard + 3):
                path = Path(manifest.audio_path(row))
                tar.add(path, f"{'long' * 40 * (row % 2)}{row:04}{path.suffix}")
                tar.add(loose, f"{row:04}.json")
    (shards / "damaged.tar").write_bytes((shards / "000000.tar").read_bytes()[:15_000])
    (shards / ".hidden.tar").write_bytes(b"")
    said = run("manifest", shards, "--out", tmp_path / "out", "--valid", 0)
    assert "train.tsv: " in said
    listed = Manifest.load(tmp_path / "out" / "train.tsv")
    ours = [row for row in range(len(listed)) if "/damaged" not in listed.audio_path(row)]
    assert [listed.row_path(row).split(":")[0] for row in ours] == [
        f"{shard:06}.tar" for shard in range(3) for _ in range(3)
    ]
    packed = [read_audio(listed.audio_path(row)) for row in ours]
    assert same(packed, waveforms(loose))
    assert listed.num_samples[ours].tolist() == manifest.num_samples.tolist()
    assert "damaged.tar\t" in (tmp_path / "out" / "left_out.txt").read_text()
    assert verify(listed) == {}
    run("pack", tmp_path / "out" / "train.tsv", tmp_path / "again")
    assert same(waveforms(tmp_path / "again" / "train.tsv")[:9], waveforms(loose))


def test_manifest_of_packed_shards_equals_the_original(tmp_path: Path, loose: Path) -> None:
    run("pack", loose, tmp_path / "out", "--shard-size", "60K")
    (tmp_path / "out" / "train.tsv").rename(tmp_path / "was.tsv")
    run("manifest", tmp_path / "out", "--out", tmp_path / "new", "--valid", 0)
    was = (tmp_path / "was.tsv").read_text().splitlines()[1:]
    now = (tmp_path / "new" / "train.tsv").read_text().splitlines()[1:]
    lossy_lengths = [line.rsplit("\t", 2)[0] for line in now]
    assert lossy_lengths == [line.rsplit("\t", 2)[0] for line in was]
    said = run("manifest", tmp_path / "out", loose.parent, "--out", tmp_path / "both")
    assert re.search(r"found 9 audio files and \d tars; .* listed twice", said)
