"""Parsing rows in blocks gives the same result as parsing line by line."""

from __future__ import annotations

import io
import random
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from mae_ast.core.io import manifest_parser
from mae_ast.core.io.manifest_parser import ManifestError, Rows, parse_rows

MANIFEST = Path("train.tsv")
PLAIN = [
    b"a.wav\t16000",
    b"folder/b c.flac\t7\t44100",
    b"caf\xe9 \xf0\x9f\x8e\xb5.wav\t281474976710655\t768000",
    b"c\x0b\r.wav\t1\t",
    b"d.wav\t0000000012\t016000",
    b"s.wav\t7\t44100\t0",
    b"s.wav\t7\t44100\t281474976710648",
    b"s.wav\t7\t44100\t0001500",
    b"s.wav\t7\t44100\t",
    b"s.wav\t7\t\t",
    b"",
]
UNUSUAL = [
    b"e.wav\t +1_000 \t16_000",
    b"f.wav\t" + b"0" * 20 + b"9",
    b"g.wav\t5\r",
    b"s.wav\t7\t8_000\t +1_000",
]
WRONG = [
    b"a.wav",
    b"\t7",
    b"a.wav\t",
    b"a.wav\t0\t16000",
    b"a.wav\t7\t0",
    b"a.wav\t7\t768001",
    b"a.wav\t281474976710656",
    b"a.wav\t1:0",
    b"a.wav\t1/0",
    b"a.wav\t-5",
    b"a.wav\t\xb25",
    b"a.wav\t1\t2\t3\t4",
    b"a.wav\t7\t16000\t-1",
    b"a.wav\t7\t16000\t1.5",
    b"a.wav\t7\t16000\t281474976710656",
    b"a.wav\t7\t16000\t281474976710649",
    b"a.wav\t7\t\t8",
    b"a.wav\t7\t0\t8",
    b"\t\t",
]


def in_blocks(text: bytes) -> Rows:
    return parse_rows(io.BytesIO(text), MANIFEST)


def line_by_line(text: bytes) -> Rows:
    return manifest_parser._parse_lines(text, manifest_parser.FIRST_ROW_LINE, MANIFEST)


def some_text(seed: int, kinds: list[bytes]) -> bytes:
    draws = random.Random(seed)
    rows = draws.choices(kinds, k=draws.randrange(1, 40))
    text = b"".join(row + draws.choice([b"\n", b"\n", b"\r\n"]) for row in rows)
    return text if draws.random() < 0.5 else text.rstrip(b"\r\n")


def assert_equal(one: Rows, other: Rows) -> None:
    assert one.packed_paths == other.packed_paths
    for name in ("path_sizes", "lines", "lengths", "sample_rates", "starts"):
        mine, its = getattr(one, name), getattr(other, name)
        assert mine.dtype == its.dtype, name
        np.testing.assert_array_equal(mine, its, err_msg=name)


@pytest.fixture(params=[1, 50, 2**22], ids=lambda size: f"blocks of {size} bytes")
def _block_bytes(request, monkeypatch):
    monkeypatch.setattr(manifest_parser, "_BLOCK_BYTES", request.param)


@pytest.mark.usefixtures("_block_bytes")
@pytest.mark.parametrize("kinds", [PLAIN, PLAIN + UNUSUAL], ids=["plain", "unusual"])
def test_block_parser_equals_line_parser(kinds):
    for seed in range(50):
        text = some_text(seed, kinds)
        assert_equal(in_blocks(text), line_by_line(text))


@pytest.mark.usefixtures("_block_bytes")
@pytest.mark.parametrize("wrong", WRONG)
def test_block_parser_raises_the_same_errors_as_line_parser(wrong):
    for seed in range(5):
        text = some_text(seed, PLAIN).rstrip() + b"\n" + wrong + b"\n" + some_text(seed, PLAIN)
        with pytest.raises(ManifestError) as expected:
            line_by_line(text)
        with pytest.raises(ManifestError) as raised:
            in_blocks(text)
        assert str(raised.value) == str(expected.value)
        assert str(raised.value).startswith("train.tsv:")


def test_plain_rows_are_not_parsed_line_by_line(monkeypatch):
    monkeypatch.setattr(manifest_parser, "_parse_lines", None)
    for seed in range(50):
        text = some_text(seed, PLAIN)
        assert len(in_blocks(b"a.wav\t7\n" + text).lines)


def test_empty_input_has_no_rows():
    assert_equal(in_blocks(b""), line_by_line(b""))


def test_peak_memory_is_close_to_the_size_of_the_rows(monkeypatch):
    monkeypatch.setattr(manifest_parser, "_BLOCK_BYTES", 2**14)
    text = b"".join(b"folder/%09d.flac\t160000\t16000\n" % row for row in range(50_000))
    file = io.BytesIO(text)
    tracemalloc.start()
    rows = parse_rows(file, MANIFEST)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(rows.lines) == 50_000
    packed = len(rows.packed_paths) + 50_000 * (8 + 8 + 8 + 4 + 8)
    assert peak < 1.2 * packed + 40 * 2**14
