"""ESC-50: the five folds are written with labels."""

from __future__ import annotations

from pathlib import Path

import pytest

from mae_ast.core.io.labels import Labels
from mae_ast.core.io.manifest import Manifest
from mae_ast.prepare import esc50
from tests.prepare.conftest import write_garbage, write_sound

CATEGORIES = ("dog", "rooster", "crackling_fire")
HEADER = "filename,fold,target,category,esc10,src_file,take\n"


@pytest.fixture
def tree(tmp_path) -> Path:
    """Two recordings per class and fold, in the layout of GitHub's archive."""
    root = tmp_path / "data" / "ESC-50-master"
    lines = []
    for fold in range(1, 6):
        for target, category in enumerate(CATEGORIES):
            for take in "AB":
                name = f"{fold}-100{fold}{target}-{take}-{target}.wav"
                lines.append(f"{name},{fold},{target},{category},True,100{fold}{target},{take}\n")
                write_sound(root / "audio" / name, 0.2, 44_100)
    (root / "meta").mkdir()
    (root / "meta" / "esc50.csv").write_text(HEADER + "".join(lines))
    return root


def test_folds_are_disjoint_and_complete(tree, tmp_path, rows):
    done = esc50.prepare(tree.parent, tmp_path / "out")
    everything = {str(path) for path in (tree / "audio").iterdir()}
    held_out = []
    for fold in range(1, 6):
        folder = tmp_path / "out" / f"fold{fold}"
        train, valid = rows(folder, "train"), rows(folder, "valid")
        assert not train.keys() & valid.keys()
        assert train.keys() | valid.keys() == everything
        assert all(Path(path).name.startswith(f"{fold}-") for path in valid)
        for path, mids in (train | valid).items():
            assert mids == (CATEGORIES[int(Path(path).stem[-1])],)
        held_out += valid
        labels = Labels.read(folder / "labels.csv")
        assert labels.mids == CATEGORIES
        assert labels.names[2] == "crackling fire"
        manifest = Manifest.read(folder / "train.tsv")
        assert set(zip(manifest.lengths, manifest.sample_rates, strict=True)) == {(8820, 44100)}
    assert sorted(held_out) == sorted(everything)
    split = done.splits[0]
    assert (split.name, split.clips, split.classes, split.missing) == ("fold1/train", 24, 3, 0)
    assert split.seconds == pytest.approx(24 * 0.2)
    assert (done.num_classes, done.missing, done.skipped) == (3, (), ())
    assert not (tmp_path / "out" / "missing.txt").exists()


def test_missing_and_unreadable_files_are_reported(tree, tmp_path, rows):
    gone, bad = tree / "audio" / "2-10020-A-0.wav", tree / "audio" / "3-10031-B-1.wav"
    gone.unlink()
    write_garbage(bad)
    done = esc50.prepare(tree, tmp_path / "out")
    assert done.missing == (str(gone),)
    assert (tmp_path / "out" / "missing.txt").read_text() == f"{gone}\n"
    assert [path for path, _ in done.skipped] == [str(bad)]
    report = (tmp_path / "out" / "left_out.txt").read_text()
    assert report.startswith(f"{bad}\tcannot be read as audio")
    assert [split.missing for split in done.splits] == [1, 0, 0, 1, 1, 0, 1, 0, 1, 0]
    assert len(rows(tmp_path / "out" / "fold2", "valid")) == 5
    assert len(rows(tmp_path / "out" / "fold1", "train")) == 22
    write_sound(gone)
    write_sound(bad)
    esc50.prepare(tree, tmp_path / "out")  # removes the earlier reports
    assert not {"missing.txt", "left_out.txt"} & {p.name for p in (tmp_path / "out").iterdir()}


def test_output_is_deterministic(tree, tmp_path, written):
    for out in ("a", "b"):
        esc50.prepare(tree, tmp_path / out, jobs=3)
    assert written(tmp_path / "a") == written(tmp_path / "b")


@pytest.mark.parametrize(
    ("breakage", "words"),
    [
        ("rm -r .", "no such folder; expected ESC-50"),
        ("rm -r meta", "no meta/esc50.csv in it; expected ESC-50"),
        ("rm -r audio", "no audio folder in it; expected ESC-50"),
        ("rm audio/*", "none of 24 clips of fold1/train can be used"),
        ("rm audio/4-*", "none of 6 clips of fold4/valid can be used"),
    ],
)
def test_wrong_folder_is_reported(tree, tmp_path, breakage, words):
    kind, pattern = breakage.rsplit(" ", 1)
    if kind == "rm -r":
        (tree / pattern).resolve().rename(tmp_path / "elsewhere")
    else:
        for path in tree.glob(pattern):
            path.unlink()
    with pytest.raises((ValueError, OSError), match=words) as error:
        esc50.prepare(tree, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (HEADER, "file,fold,target,category\n", r"esc50.csv:1: its header lacks filename"),
        ("B-2.wav,5,2", "B-2.wav,6,2", r"esc50.csv:31: fold '6'; expected 1 to 5"),
        ("A-0.wav,1,0", "A-0.wav,1,x", r"esc50.csv:2: target 'x'; expected 0 to 49"),
        ("B-0.wav,1,0,dog", "B-0.wav,1,0,cat", r"esc50.csv:3: target 0 is 'cat' here and 'dog'"),
        (",0,dog,", ",7,dog,", "targets are not exactly 0 to C - 1"),
        (",True,10010,A\n", "\n", "esc50.csv:2: has a different number of columns"),
        ("2-10020-B-0", "1-10010-A-0", "1-10010-A-0.wav: is listed in .* and again in"),
    ],
)
def test_invalid_csv_is_reported(tree, tmp_path, old, new, words):
    path = tree / "meta" / "esc50.csv"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(ValueError, match=words) as error:
        esc50.prepare(tree, tmp_path / "out")
    assert "\n" not in str(error.value)


def test_stale_manifest_in_the_output_folder_is_refused(tree, tmp_path):
    (tmp_path / "out" / "fold3").mkdir(parents=True)
    (tmp_path / "out" / "fold3" / "test.tsv").touch()
    with pytest.raises(ValueError, match=r"fold3/test\.tsv: exists from an earlier run"):
        esc50.prepare(tree, tmp_path / "out")
