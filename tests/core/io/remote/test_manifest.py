"""Manifests whose shards are on a server."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import soundfile
import torch

from mae_ast.core.io.audio import AudioError, read_audio
from mae_ast.core.io.manifest import Manifest, ManifestError, write_manifest
from mae_ast.core.io.remote.urls import RemoteError
from mae_ast.core.io.segment import Segment, SegmentError, read_segment
from mae_ast.evaluate.read_clips import read_or_skip
from mae_ast.prepare.pack import pack
from tests.sounds import pcm16, speech_like
from tests.web_server import WebServer, fails, gives

NUM_CLIPS = 4


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """Folder of two shards with two clips of half a second each."""
    rows = []
    for number in range(NUM_CLIPS):
        samples = pcm16(speech_like(8_000, number)).numpy()
        soundfile.write(tmp_path / f"{number}.wav", samples, 16_000)
        rows.append((f"{number}.wav", len(samples), 16_000))
    write_manifest(tmp_path / "train.tsv", ".", rows)
    pack(Manifest.load(tmp_path / "train.tsv"), tmp_path / "packed", 40_000)
    return tmp_path / "packed"


@pytest.fixture
def server(packed: Path) -> Iterator[WebServer]:
    with WebServer() as server:
        for path in packed.iterdir():
            server.url(f"/shards/{path.name}", gives(path.read_bytes()))
        yield server


def at(server: WebServer, packed: Path, root: str = "/shards/") -> Path:
    """Put the server's address into line 1 of the manifest."""
    text = (packed / "train.tsv").read_text()
    url = f"http://127.0.0.1:{server.server_port}{root}"
    path = packed.with_name("remote.tsv")
    path.write_text(text.replace(".\n", f"{url}\n", 1))
    return path


def test_clips_of_remote_shards_are_those_of_local_ones(server: WebServer, packed: Path) -> None:
    local, remote = Manifest.load(packed / "train.tsv"), Manifest.load(at(server, packed))
    assert not server.requests
    assert remote.may_be_remote
    assert not local.may_be_remote
    for row in range(NUM_CLIPS):
        assert torch.equal(read_audio(remote.audio_path(row)), read_audio(local.audio_path(row)))
    for name in ("train-00000.tar", "train-00001.tar", "SHA256SUMS"):
        assert len(server.asked(f"/shards/{name}")) == 1
    assert len(server.requests) == 3


def test_rows_may_be_urls_with_queries(server: WebServer, packed: Path) -> None:
    """The address of a file may carry its permission."""
    query = "/shards/train-00000.tar?signature=a:b/c"
    url = server.url(query, gives((packed / "train-00000.tar").read_bytes()))
    local = Manifest.load(packed / "train.tsv")
    _, offset, length = local.row_path(0).split(":")
    write_manifest(packed / "mixed.tsv", ".", [
        (f"{url}:{offset}:{length}", 8_000, 16_000), (local.row_path(1), 8_000, 16_000)
    ])  # fmt: skip
    mixed = Manifest.load(packed / "mixed.tsv")
    assert [mixed.is_remote(row) for row in range(2)] == [True, False]
    for row in range(2):
        assert torch.equal(read_audio(mixed.audio_path(row)), read_audio(local.audio_path(row)))
    assert {path for path, _ in server.requests} == {query}
    wrong = f"{url}:{int(offset) + 512}:{length}"
    with pytest.raises(AudioError, match=r"no file at this offset|belongs to another"):
        read_audio(wrong)


def test_segments_of_remote_clips(server: WebServer, packed: Path) -> None:
    path = Manifest.load(at(server, packed)).audio_path(0)
    whole = read_audio(path)
    assert torch.equal(read_segment(Segment(path, 1_000, 500)), whole[1_000:1_500])
    with pytest.raises(SegmentError, match=f"^{re.escape(path)}: the segment from"):
        read_segment(Segment(path, 7_900, 500))
    text = at(server, packed).read_text().replace("\t8000\t16000\n", "\t8000\t16000\t9000\n")
    (packed / "segments.tsv").write_text(text)
    requests = len(server.requests)
    assert len(Manifest.load(packed / "segments.tsv")) == NUM_CLIPS  # checked when they are read
    assert len(server.requests) == requests


def test_an_unreachable_shard_is_no_bad_clip(server: WebServer, packed: Path) -> None:
    manifest = Manifest.load(at(server, packed, "/gone"))
    server.url("/gone/SHA256SUMS", fails(404))
    url = server.url("/gone/train-00000.tar", fails(404))
    with pytest.raises(RemoteError, match=f"^{url}: cannot be fetched") as caught:
        read_or_skip(manifest, 0, 400)
    assert not isinstance(caught.value, AudioError)
    assert len(server.asked("/gone/train-00000.tar")) == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("http://h/s\na.tar:0:9\t8000\n", ":2: http://h/s/a.tar:0:9: has no sample rate"),
        ("http://h/s\na.wav\t8000\t16000\n", ":2: .*a URL must name a file in a tar, URL:offset"),
        (".\nftp://h/a.tar:0:9\t8000\t16000\n", ":2: .*ftp:// is not supported; expected one of"),
        ("ftp://h\na.tar:0:9\t8000\t16000\n", ":1: ftp://h: ftp:// is not supported; expected"),
    ],
)
def test_invalid_rows(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "train.tsv").write_text(text)
    with pytest.raises(ManifestError, match=said):
        Manifest.load(tmp_path / "train.tsv")
