"""Files of labels: what is written is read, and what is wrong is refused with file and line."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from mae_ast.core.io.labels import ClipLabels, LabelError, Labels, write_clip_labels

SPEECH = Labels(
    ("/m/09x0r", "/m/05zppz", "/m/02zsn"),
    ("Speech", "Male speech, man speaking", 'A "quoted" naïve\nname'),
)
HEADER = "index,mid,display_name\n"


def test_classes_come_back_as_they_were_written(tmp_path):
    path = tmp_path / "labels.csv"
    SPEECH.write(path)
    assert Labels.read(path) == SPEECH
    assert [SPEECH.index(mid) for mid in SPEECH.mids] == [0, 1, 2]
    assert path.read_text().startswith(HEADER + '0,/m/09x0r,Speech\n1,/m/05zppz,"Male speech,')
    assert [p.name for p in tmp_path.iterdir()] == ["labels.csv"]
    assert pickle.loads(pickle.dumps(SPEECH)).index("/m/02zsn") == 2
    assert "/m/02zsn" in SPEECH
    assert "/m/0" not in SPEECH


def test_audiosets_own_file_is_read(tmp_path):
    path = tmp_path / "labels.csv"  # its names are all in quotes; with a BOM and Windows' line ends
    path.write_bytes(
        b"\xef\xbb\xbfindex,mid,display_name\r\n"
        b'0,/m/09x0r,"Speech"\r\n1,/m/05zppz,"Male speech, man speaking"\r\n'
    )
    assert Labels.read(path).names == ("Speech", "Male speech, man speaking")


@pytest.mark.parametrize(
    ("text", "where", "words"),
    [
        ("", ":1: ", "is no header"),
        ("mid,index,display_name\n", ":1: ", "index,mid,display_name"),
        ("0,/m/1,Speech\n", ":1: ", "index,mid,display_name"),
        ("index,mid,name\n0,/m/1,Speech\n", ":1: ", "'index,mid,name' is no header"),
        (HEADER, ": ", "lists no classes"),
        (HEADER + "0,a,A\n2,b,B\n", ":3: ", "index '2'; 1 comes here"),
        (HEADER + "1,a,A\n", ":2: ", "index '1'; 0 comes here"),
        (HEADER + "0,a,A\n1,b,B\n2,a,A\n", ":4: ", "the mid 'a' is on line 2 already"),
        (HEADER + "0,a,A, B\n", ":2: ", "4 columns"),
        (HEADER + "0,a,A\n\n1,b,B\n", ":3: ", "0 columns"),
        (HEADER + "0,,A\n", ":2: ", "'' is no mid"),
        (HEADER + '0,"a,b",A\n', ":2: ", "'a,b' is no mid"),
        (HEADER + '0,a,"A\nA"\n5,b,B\n', ":4: ", "index '5'"),
        (b"index,mid,display_name\n0,a,\xff\n", ": ", "is no UTF-8 text"),
    ],
)
def test_a_wrong_labels_csv(tmp_path, text, where, words):
    path = tmp_path / "labels.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(LabelError) as error:
        Labels.read(path)
    assert str(error.value).startswith(f"{path}{where}")
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_no_labels_csv(tmp_path):
    with pytest.raises(FileNotFoundError, match="mae-ast prepare"):
        Labels.read(tmp_path / "labels.csv")


@pytest.mark.parametrize(
    ("mids", "words"),
    [((), "one class at least"), (("a", "a"), "class 0 and class 1"), (("a", " b"), "is no mid")],
)
def test_wrong_classes(mids, words):
    with pytest.raises(LabelError, match=words):
        Labels(mids, tuple("name" for _ in mids))


def test_an_unknown_mid_names_the_nearest():
    with pytest.raises(LabelError) as error:
        SPEECH.index("/m/05zppx")
    assert str(error.value) == (
        "'/m/05zppx' is none of the 3 classes; the nearest is '/m/05zppz' "
        "(Male speech, man speaking)"
    )


ROWS = [["c"], ["a", "b"], ["b"], ["c", "a", "d"], ["a"]]
FEW = Labels(("a", "b", "c", "d", "e"), ("A", "B", "C", "D", "E"))


def test_clips_labels_come_back_as_they_were_written(tmp_path):
    path = tmp_path / "train.lbl"
    write_clip_labels(path, ROWS)
    assert path.read_text() == "c\na,b\nb\nc,a,d\na\n"
    read = ClipLabels.read(path, FEW, 5)
    assert len(read) == 5
    assert [[FEW.mids[i] for i in clip] for clip in read] == ROWS
    assert read[3].dtype == np.int64
    assert read.counts.tolist() == [3, 2, 2, 1, 0]
    assert [p.name for p in tmp_path.iterdir()] == ["train.lbl"]
    with pytest.raises(IndexError):
        read[5]
    with pytest.raises(IndexError):
        read[-1]


@pytest.mark.parametrize("rows", [[0], [3, 1, 3], [4, 3, 2, 1, 0], []])
def test_multi_hot(tmp_path, rows):
    write_clip_labels(tmp_path / "train.lbl", ROWS)
    hot = ClipLabels.read(tmp_path / "train.lbl", FEW, 5).multi_hot(np.array(rows, dtype=int))
    expected = [[float(mid in ROWS[row]) for mid in FEW.mids] for row in rows]
    assert hot.dtype == np.float32
    assert np.array_equal(hot, np.array(expected).reshape(-1, 5))


def test_multi_hot_of_a_row_that_is_none(tmp_path):
    write_clip_labels(tmp_path / "train.lbl", ROWS)
    read = ClipLabels.read(tmp_path / "train.lbl", FEW, 5)
    for rows in ([5], [0, -1]):
        with pytest.raises(IndexError):
            read.multi_hot(rows)


def test_many_labels_are_small_and_soon_read(tmp_path):
    many = Labels(tuple(f"/m/{i:05}" for i in range(527)), tuple(map(str, range(527))))
    rows = 50_000
    path = tmp_path / "train.lbl"
    write_clip_labels(path, ([many.mids[i % 527], many.mids[(i + 9) % 527]] for i in range(rows)))
    read = ClipLabels.read(path, many, rows)
    assert sum(a.nbytes for a in vars(read).values() if isinstance(a, np.ndarray)) == rows * 12
    assert read[526].tolist() == [526, 8]
    assert read.counts.sum() == 2 * rows


@pytest.mark.parametrize(
    ("text", "where", "words"),
    [
        ("a\nB\n", ":2: ", "'B' is none of the 5 classes; the nearest is"),
        ("a\nb,cc\n", ":2: ", "the nearest is 'c' (C); labels.csv lists them"),
        ("a\n\nb\n", ":2: ", "is empty; each clip of train.tsv"),
        ("a\nb\n \n", ":3: ", "is empty"),
        ("a,\nb\n", ":1: ", "a comma too many"),
        ("a,b,a\nb\n", ":1: ", "'a,b,a' has a mid twice"),
        ("a\n", ": ", "has 1 line, train.tsv lists 2 clips"),
        ("a\nb\nc\n", ": ", "has 3 lines, train.tsv lists 2 clips"),
        ("", ": ", "has 0 lines, train.tsv lists 2 clips"),
        (b"a\n\xff\n", ":2: ", "is none of the 5 classes"),
    ],
)
def test_a_wrong_lbl(tmp_path, text, where, words):
    path = tmp_path / "train.lbl"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(LabelError) as error:
        ClipLabels.read(path, FEW, 2)
    assert str(error.value).startswith(f"{path}{where}")
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_no_last_line_end_and_windows_ones_will_do(tmp_path):
    (tmp_path / "train.lbl").write_bytes(b"\xef\xbb\xbfa\r\nb, c")
    read = ClipLabels.read(tmp_path / "train.lbl", FEW, 2)
    assert [clip.tolist() for clip in read] == [[0], [1, 2]]


def test_no_lbl(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"one line for each clip of valid\.tsv"):
        ClipLabels.read(tmp_path / "valid.lbl", FEW, 2)


@pytest.mark.parametrize("row", [[], ["a,b"], ["a", ""], ["a\n"]])
def test_what_fits_no_lbl_is_not_written(tmp_path, row):
    path = tmp_path / "train.lbl"
    path.write_text("a\n")
    with pytest.raises(LabelError, match=r"train\.lbl:2: "):
        write_clip_labels(path, [["a"], row])
    assert path.read_text() == "a\n"
    assert [p.name for p in tmp_path.iterdir()] == ["train.lbl"]
