"""``mae-ast manifest``, ``stats`` and ``reconstruct``, run as processes."""

import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from mae_ast.cli.reconstruct import _images
from mae_ast.core.frontend.fbank import fbank
from mae_ast.core.io.manifest import Manifest
from mae_ast.core.models.config import MaeAstConfig
from mae_ast.core.models.mae_ast import MaeAst
from tests.trainer.forked import run_forked

pytestmark = pytest.mark.slow

COMMAND = Path(sys.executable).with_name("mae-ast")


def run(*arguments, cwd=None):
    return run_forked([COMMAND, *arguments], cwd)


def write(path, seconds, rate=16_000, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).standard_normal(int(seconds * rate)) * 0.1
    soundfile.write(path, noise, rate, subtype="PCM_16")
    return path


@pytest.fixture(scope="module")
def music(tmp_path_factory):
    """Folder with 40 usable audio files and five unusable ones."""
    root = tmp_path_factory.mktemp("müsic box")
    for number in range(40):
        rate = 48_000 if number % 4 == 0 else 16_000
        write(root / "a b" / f"{number:02}.flac", 0.5 + number / 100, rate, number)
    write(root / "c" / "deep" / "long.wav", 9.0)
    write(root / "c" / "short.wav", 0.01)
    (root / "c" / "empty.flac").touch()
    (root / "c" / "garbage.mp3").write_bytes(b"this is not music" * 100)
    write(root / "c" / "tab\there.wav", 1.0)
    (root / "c" / "notes.txt").write_text("no audio")
    return root


def test_manifest_lists_usable_files_and_reports_the_others(music, tmp_path):
    done = run("manifest", music, "--out", tmp_path, "--valid", 0.2, "--max-seconds", 5)
    assert done.returncode == 0, done.stderr
    splits = {name: Manifest.load(tmp_path / f"{name}.tsv") for name in ("train", "valid")}
    paths = {
        name: [listed.audio_path(row) for row in range(len(listed))]
        for name, listed in splits.items()
    }
    assert sum(map(len, paths.values())) == 40
    assert not set(paths["train"]) & set(paths["valid"])
    assert 2 <= len(paths["valid"]) <= 16
    for name, listed in splits.items():
        for row, path in enumerate(paths[name]):
            info = soundfile.info(path)
            assert (listed.lengths[row], listed.sample_rates[row]) == (info.frames, info.samplerate)
    report = (tmp_path / "left_out.txt").read_text()
    assert report.count("\n") == 5
    for name, reason in {
        "empty.flac": "is empty",
        "garbage.mp3": "cannot be read",
        "short.wav": "shorter than",
        "long.wav": "longer than 5 s",
        "tab\there.wav": "tab",
    }.items():
        line = next(line for line in report.splitlines() if name in line)
        assert reason in line
    assert "skipped 5 files" in done.stderr
    assert "skipped, by suffix: 1 .txt\n" in done.stderr
    assert "notes.txt" not in report


def test_adding_files_keeps_the_split_of_a_file(music, tmp_path):
    run("manifest", music / "a b", "--out", tmp_path / "one", "--valid", 0.3)
    before = (tmp_path / "one" / "valid.tsv").read_text().splitlines()[1:]
    write(music / "a b" / "zz.flac", 1.0)
    run("manifest", music / "a b", "--out", tmp_path / "two", "--valid", 0.3)
    (music / "a b" / "zz.flac").unlink()
    after = (tmp_path / "two" / "valid.tsv").read_text().splitlines()[1:]
    assert set(before) <= set(after) | {"zz.flac\t16000\t16000"}
    assert len(after) - len(before) in (0, 1)


def test_adding_folders_keeps_the_split_of_a_file(music, tmp_path):
    """Rows change all the same: they are relative to the common root of the folders."""

    def valid_files(name, *folders):
        run("manifest", *folders, "--out", tmp_path / name, "--valid", 0.3)
        listed = Manifest.load(tmp_path / name / "valid.tsv")
        return {listed.audio_path(row) for row in range(len(listed))}

    alone = valid_files("alone", music / "a b")
    both = valid_files("both", music / "a b", music / "c")
    assert len(alone) > 1
    assert {path for path in both if "/a b/" in path} == alone


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("manifest", "nowhere"), ("nowhere", "no such folder")),
        (("manifest", __file__), ("test_commands.py: is a file; expected a folder of audio",)),
        (("manifest", ".", "--valid", "1"), ("--valid 1", "nothing for training")),
        (("manifest", "."), ("no audio files",)),
        (("stats", "nowhere.tsv"), ("nowhere.tsv", "no such manifest")),
        (("stats", "a.tsv", "--window", "hann"), ("--window hann", "one of povey, hanning")),
        (("reconstruct", "no.pt", "no.wav"), ("no.pt", "no such checkpoint")),
        (("pretrain", ".", "--config", "huge"), ("huge", "mae_ast", "demo")),
    ],
)
def test_invalid_input_ends_in_one_line(tmp_path, arguments, words):
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()
    assert len(last) == 1
    assert last[0].startswith("mae-ast: error: ")
    for word in words:
        assert word in last[0]


@pytest.mark.parametrize("window", ["povey", "hanning"])
def test_stats_are_mean_and_std_of_log_mel(music, tmp_path, window):
    run("manifest", music / "a b", "--out", tmp_path, "--valid", 0)
    done = run("stats", tmp_path / "train.tsv", "--window", window)
    values = dict(part.removeprefix("model.").split("=") for part in done.stdout.split())
    listed = Manifest.load(tmp_path / "train.tsv")
    from mae_ast.core.io.audio import read_audio

    frames = torch.cat(
        [fbank(read_audio(listed.audio_path(row))[None], window)[0] for row in range(len(listed))]
    )
    assert values["input_stats"] == "fixed"
    assert float(values["input_mean"]) == pytest.approx(frames.mean().item(), abs=1e-3)
    assert float(values["input_std"]) == pytest.approx(frames.std().item(), abs=1e-3)


def test_stats_of_silence_are_refused(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(16_000), 16_000)
    (tmp_path / "train.tsv").write_text(f"{tmp_path}\na.wav\t16000\t16000\n")
    done = run("stats", tmp_path / "train.tsv")
    assert done.returncode == 1
    assert "train.tsv: the log-mel variance is zero (only silence?)" in done.stderr


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    config = MaeAstConfig(
        encoder_layers=1,
        encoder_embed_dim=32,
        encoder_ffn_embed_dim=64,
        encoder_attention_heads=4,
        decoder_layers=1,
        decoder_embed_dim=32,
    )
    path = tmp_path_factory.mktemp("run") / "checkpoint.pt"
    state = {
        "cfg": {"model": vars(config), "task": {"mask_type": "chunk_mask"}},
        "model": MaeAst(config).state_dict(),
    }
    torch.save(state, path)
    return path


def test_reconstruct_writes_an_image(checkpoint, music, tmp_path):
    image = tmp_path / "new" / "image.png"
    file = music / "a b" / "36.flac"
    done = run("reconstruct", checkpoint, file, "-o", image, "--ratio", 0.5)
    assert done.returncode == 0, done.stderr
    assert "50% masked" in done.stdout
    assert image.read_bytes().startswith(b"\x89PNG")
    again = run("reconstruct", checkpoint, file, "-o", image, "--ratio", 0.5)
    assert again.stdout == done.stdout


def test_reconstruct_writes_an_image_per_file(checkpoint, music, tmp_path):
    files = [music / "a b" / "36.flac", music / "c" / "garbage.mp3", music / "a b" / "37.flac"]
    again = tmp_path / "36.wav"  # would have the name of the first one
    write(again, 1.0)
    folder = tmp_path / "new" / "images"
    done = run("reconstruct", checkpoint, *files, again, tmp_path / "no.wav", "-o", folder)
    assert done.returncode == 1
    assert sorted(path.name for path in folder.iterdir()) == ["36.png", "36_2.png", "37.png"]
    lines = done.stdout.splitlines()
    assert [line.partition(": 7")[0] for line in lines] == [
        f"{number}/5 {folder / name}"
        for number, name in ((1, "36.png"), (3, "37.png"), (4, "36_2.png"))
    ]
    bad, missing, last = done.stderr.splitlines()
    assert bad.startswith(f"2/5 skipped: {files[1]}: ")
    assert missing == f"5/5 skipped: {tmp_path / 'no.wav'}: no such audio file"
    assert last == "mae-ast: error: 2 of 5 files skipped, see above"
    for name in ("36.png", "37.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")


def test_reconstruct_names_images_after_files(tmp_path):
    one, several = [Path("x/a.wav")], [Path("x/a.wav"), Path("b.flac")]
    assert _images(one, None) == [Path("reconstruction.png")]
    assert _images(one, Path("new/b.svg")) == [Path("new/b.svg")]
    assert _images(one, tmp_path) == [tmp_path / "a.png"]
    assert _images(one, Path("folder")) == [Path("folder/a.png")]
    assert _images(several, None) == [
        Path("reconstructions/a.png"),
        Path("reconstructions/b.png"),
    ]
    assert _images([*several, Path("a_2.ogg"), Path("a.mp3")], Path("v1.0"))[2:] == [
        Path("v1.0/a_2.png"),
        Path("v1.0/a_3.png"),
    ]
    with pytest.raises(ValueError, match=r"^--out a\.png: a folder is needed for 2 files$"):
        _images(several, Path("a.png"))


def test_reconstruct_refuses_invalid_input(checkpoint, music, tmp_path):
    for arguments, words in (
        ((music / "c" / "short.wav",), "shorter than one patch"),
        ((music / "a b" / "36.flac", "--ratio", 1), "between 0 and 1"),
        ((music / "a b" / "36.flac", "--mask-type", "spots"), "spots"),
    ):
        done = run("reconstruct", checkpoint, *arguments, "-o", tmp_path / "no.png")
        assert done.returncode == 1
        assert words in done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "no.png").exists()
