"""Label files are read back as written, and invalid ones are reported with file and line."""

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


def test_written_classes_are_read_back(tmp_path):
    path = tmp_path / "labels.csv"
    SPEECH.write(path)
    assert Labels.read(path) == SPEECH
    assert [SPEECH.index(mid) for mid in SPEECH.mids] == [0, 1, 2]
    assert path.read_text().startswith(HEADER + '0,/m/09x0r,Speech\n1,/m/05zppz,"Male speech,')
    assert [p.name for p in tmp_path.iterdir()] == ["labels.csv"]
    assert pickle.loads(pickle.dumps(SPEECH)).index("/m/02zsn") == 2
    assert "/m/02zsn" in SPEECH
    assert "/m/0" not in SPEECH


def test_audioset_class_list_is_read(tmp_path):
    path = tmp_path / "labels.csv"  # all names quoted, with a BOM and CRLF line ends
    path.write_bytes(
        b"\xef\xbb\xbfindex,mid,display_name\r\n"
        b'0,/m/09x0r,"Speech"\r\n1,/m/05zppz,"Male speech, man speaking"\r\n'
    )
    assert Labels.read(path).names == ("Speech", "Male speech, man speaking")


@pytest.mark.parametrize(
    ("text", "where", "words"),
    [
        ("", ":1: ", "is not a valid header"),
        ("mid,index,display_name\n", ":1: ", "index,mid,display_name"),
        ("0,/m/1,Speech\n", ":1: ", "index,mid,display_name"),
        ("index,mid,name\n0,/m/1,Speech\n", ":1: ", "'index,mid,name' is not a valid header"),
        (HEADER, ": ", "lists no classes"),
        (HEADER + "0,a,A\n2,b,B\n", ":3: ", "index '2'; expected 1"),
        (HEADER + "1,a,A\n", ":2: ", "index '1'; expected 0"),
        (HEADER + "0,a,A\n1,b,B\n2,a,A\n", ":4: ", "duplicate mid 'a', already on line 2"),
        (HEADER + "0,a,A, B\n", ":2: ", "4 columns"),
        (HEADER + "0,a,A\n\n1,b,B\n", ":3: ", "0 columns"),
        (HEADER + "0,,A\n", ":2: ", "'' is not a valid mid"),
        (HEADER + '0,"a,b",A\n', ":2: ", "'a,b' is not a valid mid"),
        (HEADER + '0,a,"A\nA"\n5,b,B\n', ":4: ", "index '5'"),
        (b"index,mid,display_name\n0,a,\xff\n", ": ", "is not UTF-8 text"),
    ],
)
def test_invalid_labels_csv_is_reported(tmp_path, text, where, words):
    path = tmp_path / "labels.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(LabelError) as error:
        Labels.read(path)
    assert str(error.value).startswith(f"{path}{where}")
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_labels_csv_is_reported(tmp_path):
    with pytest.raises(FileNotFoundError, match="mae-ast prepare"):
        Labels.read(tmp_path / "labels.csv")


@pytest.mark.parametrize(
    ("mids", "words"),
    [
        ((), "at least one class"),
        (("a", "a"), "class 0 and class 1"),
        (("a", " b"), "class 1: ' b' is not a valid mid"),
    ],
)
def test_invalid_classes_are_refused(mids, words):
    with pytest.raises(LabelError, match=words):
        Labels(mids, tuple("name" for _ in mids))


def test_unknown_mid_message_suggests_the_closest():
    with pytest.raises(LabelError) as error:
        SPEECH.index("/m/05zppx")
    assert str(error.value) == (
        "'/m/05zppx' is not one of the 3 classes; the closest is '/m/05zppz' "
        "(Male speech, man speaking)"
    )


ROWS = [["c"], ["a", "b"], ["b"], ["c", "a", "d"], ["a"]]
FEW = Labels(("a", "b", "c", "d", "e"), ("A", "B", "C", "D", "E"))


def test_written_clip_labels_are_read_back(tmp_path):
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
def test_multi_hot_has_ones_at_the_labels(tmp_path, rows):
    write_clip_labels(tmp_path / "train.lbl", ROWS)
    hot = ClipLabels.read(tmp_path / "train.lbl", FEW, 5).multi_hot(np.array(rows, dtype=int))
    expected = [[float(mid in ROWS[row]) for mid in FEW.mids] for row in rows]
    assert hot.dtype == np.float32
    assert np.array_equal(hot, np.array(expected).reshape(-1, 5))


def test_multi_hot_refuses_rows_out_of_range(tmp_path):
    write_clip_labels(tmp_path / "train.lbl", ROWS)
    read = ClipLabels.read(tmp_path / "train.lbl", FEW, 5)
    for rows in ([5], [0, -1]):
        with pytest.raises(IndexError):
            read.multi_hot(rows)


def test_clip_labels_take_12_bytes_per_clip(tmp_path):
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
        ("a\nB\n", ":2: ", "'B' is not one of the 5 classes; the closest is"),
        ("a\nb,cc\n", ":2: ", "the closest is 'c' (C); labels.csv lists all"),
        ("a\n\nb\n", ":2: ", "is empty; expected at least one mid for each clip of train.tsv"),
        ("a\nb\n \n", ":3: ", "is empty"),
        ("a,\nb\n", ":1: ", "'a,' has an empty mid"),
        ("a,b,a\nb\n", ":1: ", "'a,b,a' has a duplicate mid"),
        ("a\n", ": ", "has 1 line, but train.tsv lists 2 clips"),
        ("a\nb\nc\n", ": ", "has 3 lines, but train.tsv lists 2 clips"),
        ("", ": ", "has 0 lines, but train.tsv lists 2 clips"),
        (b"a\n\xff\n", ":2: ", "is not one of the 5 classes"),
    ],
)
def test_invalid_lbl_is_reported(tmp_path, text, where, words):
    path = tmp_path / "train.lbl"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(LabelError) as error:
        ClipLabels.read(path, FEW, 2)
    assert str(error.value).startswith(f"{path}{where}")
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_lbl_may_have_bom_crlf_and_no_final_newline(tmp_path):
    (tmp_path / "train.lbl").write_bytes(b"\xef\xbb\xbfa\r\nb, c")
    read = ClipLabels.read(tmp_path / "train.lbl", FEW, 2)
    assert [clip.tolist() for clip in read] == [[0], [1, 2]]


def test_missing_lbl_is_reported(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"one line for each clip of valid\.tsv"):
        ClipLabels.read(tmp_path / "valid.lbl", FEW, 2)


@pytest.mark.parametrize("row", [[], ["a,b"], ["a", ""], ["a\n"]])
def test_invalid_clip_labels_are_not_written(tmp_path, row):
    path = tmp_path / "train.lbl"
    path.write_text("a\n")
    with pytest.raises(LabelError, match=r"train\.lbl:2: "):
        write_clip_labels(path, [["a"], row])
    assert path.read_text() == "a\n"
    assert [p.name for p in tmp_path.iterdir()] == ["train.lbl"]
