"""Tables of labelled clips: CSV, TSV and JSON Lines, and errors with line and column."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from mae_ast.prepare.own_clip import OwnClip
from mae_ast.prepare.table import Table, read_table


def read(tmp_path: Path, text: str, suffix: str = ".csv", **options: Any) -> Table:
    file = tmp_path / f"clips{suffix}"
    file.write_text(text, encoding="utf-8")
    return read_table(file, **options)


EVENTS = [
    {"path": "a.wav", "label": ["dog", "rain"], "start": 0.5, "end": 2, "group": "ann"},
    {"path": "b/c.wav", "label": "cat", "group": "bob"},
]
CSV = 'path,label,start,end,group\na.wav,dog; rain,0.5,2,ann\n"b/c.wav",cat,,,bob\n'


@pytest.mark.parametrize(
    ("text", "suffix"),
    [
        (CSV, ".csv"),
        ("\ufeff" + CSV.replace("\n", "\r\n") + "\r\n", ".csv"),
        (CSV.replace("dog; rain", "dog/rain").replace(",", ";"), ".csv"),
        (CSV.replace(",", "\t"), ".tsv"),
        ("\n".join(map(json.dumps, EVENTS)) + "\n\n", ".jsonl"),
        (
            "path,label,start,end,group\na.wav,dog,0.5,2,ann\nb/c.wav,cat,,,bob\na.wav,rain,.5,2,ann\n",
            ".csv",
        ),
    ],
    ids=["csv", "spreadsheet", "semicolons", "tsv", "jsonl", "rows"],
)
def test_formats_give_the_same_clips(tmp_path: Path, text: str, suffix: str) -> None:
    options = {"separator": "/"} if "dog/rain" in text else {}
    table = read(tmp_path, text, suffix, **options)
    first, second = table.clips
    a, c = str(tmp_path / "a.wav"), str(tmp_path / "b" / "c.wav")
    assert first == OwnClip(a, "a.wav", ("dog", "rain"), "", "", "ann", 0.5, 2.0)
    assert second == OwnClip(c, "b/c.wav", ("cat",), "", "", "bob")
    assert first.is_segment
    assert not second.is_segment
    assert table.columns.keys() == {"path", "label", "start", "end", "group"}


def test_columns_root_and_separator_can_be_given(tmp_path: Path) -> None:
    (tmp_path / "audio").mkdir()
    table = read(
        tmp_path,
        "filename,category,split,fold,note\nx.wav,a;b,Validation,3,hm\n/y.wav,c,train,fold 12,\n",
        root=tmp_path / "audio",
        renamed={"path": "filename", "label": "category", "fold": ""},
        separator="",
    )
    assert [clip.path for clip in table.clips] == [str(tmp_path / "audio" / "x.wav"), "/y.wav"]
    assert [clip.labels for clip in table.clips] == [("a;b",), ("c",)]
    assert [clip.split for clip in table.clips] == ["valid", "train"]
    assert [clip.fold for clip in table.clips] == ["", ""]
    assert table.preview() == [
        "2 rows, 2 clips; columns path (named filename), label (named category), split; unused: "
        "fold, note",
        "  x.wav: a;b, valid",
        "  /y.wav: c, train",
    ]


def test_folds(tmp_path: Path) -> None:
    table = read(tmp_path, "path,label,fold\nann/1.wav,a,2\nbob/1.wav,b,fold 10\n")
    assert [clip.fold for clip in table.clips] == ["fold2", "fold10"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "clips.csv: is empty; expected the columns path and label"),
        ("\n", "clips.csv: is empty; expected the columns"),
        ("file,label\n", "clips.csv:1: has no column path, but file, label; rename one, or name"),
        ("path,label\n", "has no rows; expected one for each clip"),
        ("path,label,label\n", "clips.csv:1: has several columns label"),
        ("path,label,split,fold\na,b,train,1\n", "clips.csv:1: has both splits .column split. and"),
        ("path,label\na,b,c\n", "clips.csv:2: has 3 columns, .* has 2; put cells with ',' in"),
        ("path,label\na\n", "clips.csv:2: has 1 column, but the header has 2$"),
        ('path,label\na,b\n"a,b\n', "clips.csv:3: is not valid CSV"),
        ("path,label\n,b\n", "clips.csv:2: column path: is empty"),
        ("path,label\n\na, \n", "clips.csv:3: column label: ' ' has an empty label|is empty"),
        ("path,label\na,b;;c\n", "clips.csv:2: column label: 'b;;c' has an empty label"),
        ("path,label,start\na,b,1:30\n", "clips.csv:2: column start: '1:30' is not a time in sec"),
        ("path,label,start\na,b,-1\n", "column start: '-1' is not a time in seconds"),
        ("path,label,start,end\na,b,3,2.5\n", "column end: 2.5 is not after the start, 3"),
        ("path,label,split\na,b,train\nc,d,tset\n", "clips.csv:3: column split: 'tset'; expected"),
        ("path,label,split\na,b,train\nc,d,\n", "clips.csv:3: column split: is empty"),
        ("path,label,fold\na,b,x\n", "clips.csv:2: column fold: 'x'; expected a number"),
        (
            "path,label,split\na,b,train\na,c,test\n",
            "clips.csv:3: column split: 'test', but 'train' for the same clip at .*clips.csv:2",
        ),
    ],
)
def test_errors_have_line_and_column(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as error:
        read(tmp_path, text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"path": "a", "label": "b"}\n{"path": "a",,}\n', "clips.jsonl:2:14: is not valid JSON"),
        ('["a"]\n', "clips.jsonl:1: is not an object"),
        ('{"path": ["a"], "label": "b"}\n', "clips.jsonl:1: column path: .* neither text nor"),
        ('{"path": "a", "label": []}\n', "column label: .* empty label"),
        ('{"path": "a", "label": [["b"]]}\n', "column label: .* is not a list of labels"),
        ('{"path": "a", "label": ["b", null]}\n', "column label: .* is not a list of labels"),
        ('{"path": "a", "label": [true]}\n', "column label: .* is not a list of labels"),
        ('{"path": "a"}\n', "clips.jsonl:1: has no column label"),
        ("", "clips.jsonl: is empty; expected the columns path and label"),
    ],
)
def test_errors_of_json_have_line_and_column(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read(tmp_path, text, ".jsonl")


def test_a_line_of_json_ends_with_a_line_feed_only(tmp_path: Path) -> None:
    text = '{"path": "a", "label": "b\u2028c"}\r\n{"path": "d", "label": "e\x85f"}\r\n'
    assert [clip.labels for clip in read(tmp_path, text, ".jsonl").clips] == [("b c",), ("e f",)]


def test_text_that_is_not_utf_8_is_located(tmp_path: Path) -> None:
    file = tmp_path / "clips.csv"
    file.write_bytes("path,label\na.wav,dog\nb.wav,Möwe\n".encode("latin-1"))
    with pytest.raises(ValueError, match=re.escape(f"{file}:3: is not UTF-8 text")):
        read_table(file)


def test_wrong_options_are_refused(tmp_path: Path) -> None:
    text = "path,label,group\na,b,c\n"
    for options, words in (
        ({"renamed": {"patj": "x"}}, "--column patj: is not one of path, label"),
        ({"renamed": {"group": "site"}}, "has no column site, but path, label, group"),
        ({"root": tmp_path / "none"}, "--root .*none: no such folder"),
    ):
        with pytest.raises((ValueError, OSError), match=words):
            read(tmp_path, text, **options)
    with pytest.raises(FileNotFoundError, match="no such file; expected a table of clips"):
        read_table(tmp_path / "none.csv")
