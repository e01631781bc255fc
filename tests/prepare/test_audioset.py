"""AudioSet: clips are found by YouTube id in the usual layouts, and missing ones are listed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mae_ast.core.io.labels import Labels
from mae_ast.core.io.manifest import Manifest
from mae_ast.prepare import audioset
from tests.prepare.conftest import write_garbage, write_sound
from tests.sounds import write_with_av

NAMES = {
    "/m/09x0r": "Speech",
    "/m/05zppz": "Male speech, man speaking",
    "/m/068hy": "Domestic animals, pets",
    "/t/dd00125": "Inside, small room",
}
HEADER = (
    "# Segments csv created Sun Mar  5 10:54:31 2017\n"
    "# num_ytids={0}, num_segs={0}, num_unique_labels=4, num_positive_labels=9\n"
    "# YTID, start_seconds, end_seconds, positive_labels\n"
)
SEGMENTS = {
    "balanced_train_segments.csv": [
        '--PJHxphWEs, 30.000, 40.000, "/m/09x0r,/t/dd00125"',
        '--aE2O5G5WE, 0.000, 10.000, "/m/068hy"',
        '-0nqfRcnAYE, 40.000, 50.000, "/m/09x0r,/m/05zppz"',
        'Y5GfrG9RzWs, 12.500, 22.500, "/m/068hy"',
        '__gone_____, 12.500, 22.500, "/m/068hy"',
    ],
    "unbalanced_train_segments.csv": [
        '---1_cCGK4M, 0.000, 10.000, "/m/05zppz"',
        '--4gqARaEJE, 1260.000, 1270.000, "/m/068hy,/m/09x0r"',
    ],
    "eval_segments.csv": [
        '--U7joUcTCo, 0.000, 0.200, "/m/09x0r"',
        '-BfTYs3vlDY, 10.000, 20.000, "/t/dd00125"',
    ],
}
FILES = {  # video to file
    "--PJHxphWEs": "audio/bal_train/--PJHxphWEs.flac",
    "--aE2O5G5WE": "audio/bal_train/Y--aE2O5G5WE.wav",
    "-0nqfRcnAYE": "audio/bal_train/part 1/-0nqfRcnAYE_40.flac",
    "Y5GfrG9RzWs": "audio/bal_train/Y5GfrG9RzWs.flac",
    "---1_cCGK4M": "unbal/---1_cCGK4M_0_10000.wav",
    "--4gqARaEJE": "unbal/Y--4gqARaEJE_1260.000_1270.000.wav",
    "--U7joUcTCo": "audio/eval/--U7joUcTCo_0.wav",
    "-BfTYs3vlDY": "audio/eval/-BfTYs3vlDY_10000.wav",
}


@pytest.fixture
def tree(tmp_path) -> Path:
    root = tmp_path / "AudioSet"
    (root / "metadata").mkdir(parents=True)
    for name, lines in SEGMENTS.items():
        text = HEADER.format(len(lines)) + "".join(f"{line}\n" for line in lines)
        (root / "metadata" / name).write_text(text)
    Labels(tuple(NAMES), tuple(NAMES.values())).write(root / "class_labels_indices.csv")
    for file in FILES.values():
        write_sound(root / file, 0.1, 48_000)
    write_sound(root / "audio" / "a-strange-film.wav")
    return root


def by_video(found: dict[str, tuple[str, ...]], root: Path) -> dict[str, tuple[str, ...]]:
    videos = {str(root / file): video for video, file in FILES.items()}
    return {videos[path]: mids for path, mids in found.items()}


def listed(*lists: str) -> dict[str, tuple[str, ...]]:
    lines = [line for name in lists for line in SEGMENTS[f"{name}_segments.csv"]]
    order = list(NAMES)
    split = {line[:11]: line.split('"')[1].split(",") for line in lines}
    return {video: tuple(sorted(mids, key=order.index)) for video, mids in split.items()}


@pytest.mark.parametrize(
    ("train", "lists", "missing"),
    [
        ("balanced", ["balanced_train"], 1),
        ("unbalanced", ["unbalanced_train"], 0),
        ("full", ["balanced_train", "unbalanced_train"], 1),
    ],
)
def test_clips_are_found_by_youtube_id(tree, tmp_path, rows, train, lists, missing):
    out = tmp_path / "out"
    done = audioset.prepare(tree, out, train)
    expected = listed(*lists)
    expected.pop("__gone_____", None)
    order = list(NAMES)
    found = by_video(rows(out, "train"), tree)
    assert {v: tuple(sorted(m, key=order.index)) for v, m in found.items()} == expected
    assert list(found) == list(expected)  # in the lists' order
    assert by_video(rows(out, "valid"), tree) == listed("eval")
    assert Labels.read(out / "labels.csv").names == tuple(NAMES.values())
    assert [split.missing for split in done.splits] == [missing, 0]
    gone = "train\t__gone_____\t12.500\t22.500\n"
    assert not missing or (out / "missing.txt").read_text() == gone
    assert done.num_classes == 4
    assert done.notes == ()


def test_clips_may_have_any_audio_format(tree, tmp_path):
    for video, suffix, codec in (
        ("--PJHxphWEs", "mkv", "pcm_s16le"),
        ("--aE2O5G5WE", "m4a", "aac"),
        ("-0nqfRcnAYE", "webm", "libopus"),
        ("Y5GfrG9RzWs", "mp4", "aac"),
    ):
        (tree / FILES[video]).unlink()
        samples = np.zeros((9_600, 1), np.int16)
        write_with_av(tree / f"{video}.{suffix}", codec, samples, 48_000)
    done = audioset.prepare(tree, tmp_path / "out")
    assert done.splits[0].clips == 4
    assert done.splits[0].seconds == pytest.approx(0.8, abs=0.2)
    assert not done.skipped


def test_matching_start_time_is_preferred_among_several_files(tree, tmp_path, rows):
    """A matching start is preferred to none, then soundfile's formats; other starts are ignored."""
    folder = tree / "audio" / "bal_train"
    write_sound(folder / "--PJHxphWEs_40.flac")  # starts elsewhere
    write_sound(folder / "--PJHxphWEs_30000_40000.wav")  # milliseconds
    write_with_av(folder / "--aE2O5G5WE.mkv", "pcm_s16le", np.zeros((9_600, 1), np.int16), 48_000)
    (folder / "part 1" / "-0nqfRcnAYE_40.flac").rename(folder / "-0nqfRcnAYE_50.flac")
    done = audioset.prepare(tree, tmp_path / "out")
    found = {Path(path).name for path in rows(tmp_path / "out", "train")}
    assert found == {"--PJHxphWEs_30000_40000.wav", "Y--aE2O5G5WE.wav", "Y5GfrG9RzWs.flac"}
    assert done.splits[0].missing == 2


def test_longer_clips_are_kept_and_reported(tree, tmp_path):
    path = write_sound(tree / FILES["--U7joUcTCo"], 0.9)
    done = audioset.prepare(tree, tmp_path / "out")
    assert len(done.notes) == 1
    assert done.notes[0].startswith("1 clip longer than the segment")
    assert f"{path}, 0.9 s instead of 0.2 s" in done.notes[0]
    assert 14_400 in Manifest.read(tmp_path / "out" / "valid.tsv").lengths


def test_unreadable_files_are_reported(tree, tmp_path, rows):
    bad = write_garbage(tree / FILES["--PJHxphWEs"])
    done = audioset.prepare(tree, tmp_path / "out")
    assert [path for path, _ in done.skipped] == [str(bad)]
    assert len(rows(tmp_path / "out", "train")) == 3


def test_classes_are_read_from_the_ontology(tree, tmp_path):
    (tree / "class_labels_indices.csv").unlink()
    nodes = [{"id": "/m/0dgw9r", "name": "Human sounds"}]
    nodes += [{"id": mid, "name": name, "child_ids": []} for mid, name in NAMES.items()]
    (tree / "ontology.json").write_text(json.dumps(nodes))
    done = audioset.prepare(tree, tmp_path / "out")
    labels = Labels.read(tmp_path / "out" / "labels.csv")
    assert dict(zip(labels.mids, labels.names, strict=True)) == NAMES  # those with segments
    assert "4 classes have segments, not AudioSet's 527" in done.notes[0]
    (tree / "ontology.json").write_text('{"a": 1}')
    with pytest.raises(ValueError, match=r"ontology\.json: is not the ontology of"):
        audioset.prepare(tree, tmp_path / "out")


def test_output_is_deterministic(tree, tmp_path, written):
    for out in "ab":
        audioset.prepare(tree, tmp_path / out, "full")
    assert written(tmp_path / "a") == written(tmp_path / "b")


@pytest.mark.parametrize(
    ("gone", "words"),
    [
        (".", "no such folder; expected AudioSet"),
        ("metadata/balanced_train_segments.csv", "no balanced_train_segments.csv in it or below"),
        ("metadata/eval_segments.csv", "no eval_segments.csv in it or below; expected AudioSet"),
        ("class_labels_indices.csv", "neither class_labels_indices.csv .* nor ontology.json"),
        ("audio/eval", "none of the 2 clips of eval_segments.csv is in it or below"),
    ],
)
def test_wrong_folder_is_reported(tree, tmp_path, gone, words):
    (tree / gone).resolve().rename(tmp_path / "elsewhere")
    with pytest.raises((ValueError, OSError), match=words) as error:
        audioset.prepare(tree, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"/m/068hy"', '"/m/068hx"', "'/m/068hx' is not one of the 4 classes; .* is '/m/068hy'"),
        ("0.000, 10.000", "10.000, 0.000", "is not a valid segment; expected"),
        ("--aE2O5G5WE, 0.000, ", "--aE2O5G5WE, ", "is not a valid segment; expected"),
        ("--aE2O5G5WE", "--aE2O5", "is not a valid segment; expected"),
    ],
)
def test_invalid_list_is_reported(tree, tmp_path, old, new, words):
    path = tree / "metadata" / "balanced_train_segments.csv"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ValueError, match=f"balanced_train_segments.csv:5: .*{words}") as error:
        audioset.prepare(tree, tmp_path / "out")
    assert "\n" not in str(error.value)


def test_clip_in_two_splits_is_refused(tree, tmp_path):
    with (tree / "metadata" / "eval_segments.csv").open("a") as file:
        file.write('--PJHxphWEs, 30.000, 40.000, "/m/09x0r"\n')
    with pytest.raises(ValueError, match=r"flac: is listed in train and again in valid"):
        audioset.prepare(tree, tmp_path / "out")
