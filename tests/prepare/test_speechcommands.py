"""Speech Commands: splits by the data set's lists, and the classes unknown and silence."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mae_ast.core.io.labels import Labels
from mae_ast.prepare import speechcommands
from mae_ast.prepare.speechcommands import KS_WORDS, WORDS
from tests.prepare.conftest import write_garbage, write_sound

PER_WORD = {"train": 4, "valid": 2, "test": 1}  # clips
STRETCHES = {"train": (0.0, 0.8), "valid": (0.8, 0.9), "test": (0.9, 1.0)}  # of each noise
# Clips drawn for train from the tree below.
UNKNOWN = [
    "backward/tr5e0003_nohash_3.wav",
    "cat/tr5e0000_nohash_0.wav",
    "eight/tr5e0001_nohash_1.wav",
    "sheila/tr5e0002_nohash_2.wav",
]
SILENCE = [
    "00000_pink_noise_131192.wav",
    "00001_pink_noise_100468.wav",
    "00002_pink_noise_29840.wav",
    "00003_white_noise_9229.wav",
]


def make_tree(root: Path, version: int) -> Path:
    lists: dict[str, list[str]] = {split: [] for split in PER_WORD}
    sound = write_sound(root / "README.wav", 0.1).read_bytes()
    (root / "README.wav").unlink()
    for word in WORDS[version]:
        (root / word).mkdir()
        for split, clips in PER_WORD.items():
            for number in range(clips):
                clip = f"{word}/{split[:2]}5e{number:04}_nohash_{number}.wav"
                (root / clip).write_bytes(sound)
                lists[split].append(clip)
    (root / "validation_list.txt").write_text("".join(f"{c}\n" for c in lists["valid"]))
    (root / "testing_list.txt").write_text("".join(f"{c}\n" for c in lists["test"]))
    for name, seconds in (("pink_noise", 14), ("running_tap", 12), ("white_noise", 2)):
        write_sound(root / "_background_noise_" / f"{name}.wav", seconds)
    (root / "_background_noise_" / "README.md").write_text("noise")
    return root


@pytest.fixture
def version_2(tmp_path) -> Path:
    return make_tree(tmp_path / "speech_commands_v0.02", 2)


def test_35_words_become_35_classes(version_2, tmp_path, rows):
    done = speechcommands.prepare(version_2, tmp_path / "out")
    splits = {split: rows(tmp_path / "out", split) for split in PER_WORD}
    for split, clips in PER_WORD.items():
        assert Counter(m for (m,) in splits[split].values()) == dict.fromkeys(WORDS[2], clips)
        for path, (mid,) in splits[split].items():
            assert Path(path).parent.name == mid
            assert Path(path).name.startswith(split[:2])  # as in the data set's lists
    assert sum(map(len, splits.values())) == len(set().union(*splits.values())) == 35 * 7
    assert Labels.read(tmp_path / "out" / "labels.csv").mids == WORDS[2]
    assert len(WORDS[2]) == 35
    assert len(WORDS[1]) == 30
    assert [split.classes for split in done.splits] == [35] * 3
    assert not (tmp_path / "out" / "silence").exists()


@pytest.mark.parametrize("version", [1, 2])
def test_12_classes_include_unknown_and_silence(version, tmp_path, rows):
    root = make_tree(tmp_path / "data" / f"speech_commands_v0.0{version}", version)
    out = tmp_path / "out"
    done = speechcommands.prepare(root.parent, out, version, 12)
    labels = Labels.read(out / "labels.csv")
    assert labels.mids == (*KS_WORDS, "_unknown_", "_silence_")
    for split, clips in PER_WORD.items():
        found = rows(out, split)
        tenth = math.ceil(0.1 * 10 * clips)
        expected = dict.fromkeys(KS_WORDS, clips) | {"_unknown_": tenth, "_silence_": tenth}
        assert Counter(mid for (mid,) in found.values()) == expected
        for path, (mid,) in found.items():
            word = Path(path).parent.name
            if mid == "_silence_":
                assert path.startswith(str(out / "silence" / split))
                _, name = Path(path).stem.split("_", 1)
                stem, start = name.rsplit("_", 1)
                samples, rate = soundfile.read(path, dtype="int16")
                assert (len(samples), rate) == (16_000, 16_000)
                noise, _ = soundfile.read(root / "_background_noise_" / f"{stem}.wav", dtype="i2")
                assert np.array_equal(samples, noise[int(start) : int(start) + 16_000])
                first, last = STRETCHES[split]
                assert first <= int(start) / len(noise)
                assert (int(start) + 16_000) / len(noise) <= last
            elif mid == "_unknown_":
                assert word in set(WORDS[version]) - set(KS_WORDS)
                assert Path(path).name.startswith(split[:2])
            else:
                assert word == mid
    assert done.notes == (f"{out / 'silence'}: 7 clips of 1 s cut from _background_noise_",)


def test_version_1_defaults_to_12_classes(tmp_path):
    root = make_tree(tmp_path / "v1", 1)
    assert speechcommands.prepare(root, tmp_path / "a", 1).num_classes == 12
    assert speechcommands.prepare(root, tmp_path / "b", 1, 30).num_classes == 30
    with pytest.raises(ValueError, match="35 classes; Speech Commands version 1 supports"):
        speechcommands.prepare(root, tmp_path / "c", 1, 35)


def test_output_is_deterministic(version_2, tmp_path, written):
    out = tmp_path / "out"
    speechcommands.prepare(version_2, out, 2, 12)
    once = written(out)
    assert len(once) == 7 + 7
    speechcommands.prepare(version_2, out, 2, 12, jobs=2)
    assert written(out) == once


def test_drawn_clips_match_fixed_lists(version_2, tmp_path, rows):
    (version_2 / "yes" / "tr5e0000_nohash_0.wav").unlink()  # 39 commands; a tenth is rounded up
    speechcommands.prepare(version_2, tmp_path / "out", 2, 12)
    clips = rows(tmp_path / "out", "train")
    drawn = {mid: [Path(p) for p, (m,) in clips.items() if m == mid] for (mid,) in clips.values()}
    assert ["/".join(path.parts[-2:]) for path in drawn["_unknown_"]] == UNKNOWN
    assert [path.name for path in drawn["_silence_"]] == SILENCE


def test_unknown_clips_are_stable_when_clips_are_added(version_2, tmp_path, rows):
    speechcommands.prepare(version_2, tmp_path / "a", 2, 12)
    write_sound(version_2 / "zero" / "ff_nohash_0.wav")
    speechcommands.prepare(version_2, tmp_path / "b", 2, 12)
    before, after = (
        {path for path, mids in rows(tmp_path / out, "train").items() if mids == ("_unknown_",)}
        for out in "ab"
    )
    assert len(before) == len(after) == 4
    assert len(before & after) >= 3


def test_missing_and_unreadable_files_are_reported(version_2, tmp_path, rows):
    gone = version_2 / "yes" / "va5e0001_nohash_1.wav"
    bad = version_2 / "cat" / "te5e0000_nohash_0.wav"
    short = write_sound(version_2 / "dog" / "tr5e0000_nohash_0.wav", 0.01)
    gone.unlink()
    write_garbage(bad)
    done = speechcommands.prepare(version_2, tmp_path / "out")
    assert done.missing == (str(gone),)
    assert [(split.clips, split.missing) for split in done.splits] == [(139, 0), (69, 1), (34, 0)]
    assert dict(done.skipped).keys() == {str(bad), str(short)}
    assert dict(done.skipped)[str(short)] == "shorter than 0.045 s"
    assert str(bad) not in rows(tmp_path / "out", "test")
    assert done.splits[2].classes == 34


@pytest.mark.parametrize(
    ("version", "gone", "words"),
    [
        (2, ".", "no such folder; expected Speech Commands version 2"),
        (2, "validation_list.txt", "no validation_list.txt in it; expected Speech Commands"),
        (2, "testing_list.txt", "no testing_list.txt in it; expected Speech Commands version 2"),
        (2, "visual", "no folder visual; expected .*speech_commands_v0.02.tar.gz"),
        (
            2,
            "_background_noise_",
            "_background_noise_: no *.wav; the class _silence_".replace("*", r"\*"),
        ),
        (1, "up", "has backward, follow, forward, learn, visual, which are words of version 2"),
    ],
)
def test_wrong_folder_is_reported(version_2, tmp_path, version, gone, words):
    (version_2 / gone).resolve().rename(tmp_path / "elsewhere")
    with pytest.raises((ValueError, OSError), match=words) as error:
        speechcommands.prepare(version_2, tmp_path / "out", version, 12)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("yes/a/b.wav", "list.txt:36: 'yes/a/b.wav' is not a word and file"),
        ("hello/b.wav", "list.txt:36: 'hello/b.wav' is not a word and file.*of the 35 words"),
        ("yes/va5e0000_nohash_0.wav", "list.txt:36: .* is already in validation_list.txt"),
    ],
)
def test_invalid_list_is_reported(version_2, tmp_path, line, words):
    with (version_2 / "testing_list.txt").open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(ValueError, match=words):
        speechcommands.prepare(version_2, tmp_path / "out")


def test_unusable_noises_are_reported(version_2, tmp_path):
    noises = version_2 / "_background_noise_"
    for name in ("pink_noise", "running_tap"):
        (noises / f"{name}.wav").unlink()
    with pytest.raises(ValueError, match="no noise is long enough to cut 1 s for valid"):
        speechcommands.prepare(version_2, tmp_path / "out", 2, 12)
    write_garbage(noises / "white_noise.wav")
    with pytest.raises(ValueError, match=r"white_noise\.wav: cannot be read as audio"):
        speechcommands.prepare(version_2, tmp_path / "out", 2, 12)
