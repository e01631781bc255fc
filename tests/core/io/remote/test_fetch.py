"""Transfers of whole shards from servers that fail in every way."""

from __future__ import annotations

import hashlib
import io
import logging
import sys
import time
import types
from collections.abc import Iterator
from importlib import import_module
from typing import ClassVar

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from mae_ast.core.io.remote import fetch as fetching
from mae_ast.core.io.remote.fetch import fetch
from mae_ast.core.io.remote.patience import Patience
from mae_ast.core.io.remote.sums import format_sums, parse_sums
from mae_ast.core.io.remote.urls import RemoteError
from tests.web_server import WebServer, fails, free_port, gives, gives_in_chunks, resets

DATA = np.random.default_rng(0).bytes(3_000_000)
DIGEST = hashlib.sha256(DATA).hexdigest()
WRONG = DATA[:1000] + bytes(1000) + DATA[2000:]


@pytest.fixture
def server() -> Iterator[WebServer]:
    with WebServer() as server:
        server.url("/SHA256SUMS", fails(404))
        yield server


def sums(server: WebServer, **digests: str) -> None:
    """Serve checksums, of ``a`` for ``a.tar``."""
    text = format_sums({f"{name}.tar": digest for name, digest in digests.items()})
    server.url("/SHA256SUMS", gives(text.encode()))


def fetched(url: str) -> bytes:
    file = io.BytesIO()
    fetch(url, file)
    return file.getvalue()


@pytest.mark.parametrize("whole", [gives(DATA), gives_in_chunks(DATA)])
def test_whole_file(server: WebServer, whole) -> None:
    sums(server, a=DIGEST)
    assert fetched(server.url("/a.tar", whole)) == DATA
    assert len(server.asked("/a.tar")) == len(server.asked("/SHA256SUMS")) == 1
    assert fetched(server.url("/a.tar", whole)) == DATA
    assert len(server.asked("/SHA256SUMS")) == 1


def test_broken_transfers_are_resumed(server: WebServer) -> None:
    broken = [gives(DATA, breaks_after=size) for size in (1_000_000, 500_000)]
    url = server.url("/a.tar", *broken, gives(DATA))
    assert fetched(url) == DATA
    first, second, third = server.asked("/a.tar")
    assert "Range" not in first
    assert second["If-Range"] == third["If-Range"] == '"1"'
    starts = [int(asked["Range"].removeprefix("bytes=").rstrip("-")) for asked in (second, third)]
    assert 0 < starts[0] <= 1_000_000  # what aiohttp has in its buffers is lost
    assert starts[0] <= starts[1] <= starts[0] + 500_000


@pytest.mark.parametrize("checked", [True, False])
def test_broken_transfers_start_anew_where_the_server_cannot_resume(
    server: WebServer, checked: bool
) -> None:
    if checked:
        sums(server, a=DIGEST)
    broken = gives(DATA, etag=None, breaks_after=1_000_000, heeds_range=False)
    url = server.url("/a.tar", broken, resets, gives(DATA, etag=None, heeds_range=False))
    assert fetched(url) == DATA
    # Without a checksum and a version, two halves might be those of different files.
    assert ["Range" in asked for asked in server.asked("/a.tar")] == [False, checked, checked]


def test_file_that_changes_during_a_transfer_is_fetched_anew(server: WebServer) -> None:
    changed = DATA[::-1]
    url = server.url("/a.tar", gives(DATA, breaks_after=1_000_000), gives(changed, etag='"2"'))
    assert fetched(url) == changed
    url = server.url("/b.tar", gives(DATA, breaks_after=1_000_000),
                     gives(changed, etag='"2"', heeds_if_range=False))  # fmt: skip
    assert fetched(url) == changed
    url = server.url("/c.tar", gives(DATA, breaks_after=1_000_000), fails(416), gives(changed))
    assert fetched(url) == changed


def test_busy_servers_are_asked_again_when_they_say(
    server: WebServer, caplog: pytest.LogCaptureFixture
) -> None:
    busy = [fails(503), fails(429, Retry_After="0.4"), fails(500), resets]
    url = server.url("/a.tar", *busy, gives(DATA))
    start = time.monotonic()
    assert fetched(url) == DATA
    assert time.monotonic() - start > 0.4
    assert len(server.asked("/a.tar")) == 5
    said = [record.getMessage() for record in caplog.records if url in record.getMessage()]
    assert said == [f"{url}: status 503; waiting for the server, for up to 20 s"]
    assert caplog.records[-1].getMessage().endswith(": answers again")


def test_wrong_bytes_are_fetched_again(server: WebServer, caplog) -> None:
    sums(server, a=DIGEST)
    assert fetched(server.url("/a.tar", gives(WRONG), gives(WRONG), gives(DATA))) == DATA
    assert caplog.text.count("fetching it again") == 2


def test_wrong_bytes_end_in_an_error_with_both_checksums(server: WebServer) -> None:
    sums(server, a=DIGEST)
    url = server.url("/a.tar", gives(WRONG))
    found = hashlib.sha256(WRONG).hexdigest()
    with pytest.raises(RemoteError) as caught:
        fetched(url)
    assert str(caught.value) == (
        f"{url}: SHA-256 is {found}, but SHA256SUMS in its folder has {DIGEST}, 3 times in a row; "
        "upload the shard again, with its SHA256SUMS"
    )
    assert len(server.asked("/a.tar")) == 3
    sums(server, a=found)  # uploaded meanwhile
    assert fetched(server.url("/a.tar", gives(WRONG), gives(WRONG))) == WRONG


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [
        (fails(404), "no such file"),
        (fails(403), "status 403"),
        (gives(b"<html>log in</html>", Content_Type="text/html; charset=utf-8"), "a web page"),
    ],
)
def test_permanent_errors_are_not_retried(server: WebServer, behaviour, said: str) -> None:
    url = server.url("/a.tar", behaviour)
    with pytest.raises(RemoteError, match=f"^{url}: cannot be fetched \\({said}"):
        fetched(url)
    assert len(server.asked("/a.tar")) == 1


def test_missing_checksums_are_logged_once(server: WebServer, caplog) -> None:
    for _ in range(2):
        assert fetched(server.url("/a.tar", gives(DATA))) == DATA
    assert caplog.text.count("the shards in this folder are not verified") == 1


def test_patience_ends(monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    monkeypatch.setenv("MAE_AST_SHARD_CACHE_PATIENCE_S", "0.5")
    url = f"http://127.0.0.1:{free_port()}/a.tar"
    start = time.monotonic()
    with pytest.raises(RemoteError) as caught:
        fetched(url)
    took = time.monotonic() - start
    assert 0.5 <= took < 5
    assert "not fetched for 0.5 s (" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "MAE_AST_SHARD_CACHE_PATIENCE_S" in str(caught.value)
    assert caplog.text.count("waiting for the server, for up to") == 1
    # All others fail at once.
    start = time.monotonic()
    with pytest.raises(RemoteError, match=r"not fetched for 0\.5 s"):
        fetched(url.replace("/a.tar", "/b.tar"))
    assert time.monotonic() - start < 0.3


def test_patience_counts_time_without_progress(
    server: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server may break each transfer, as long as each brings more of the file."""
    monkeypatch.setenv("MAE_AST_SHARD_CACHE_PATIENCE_S", "0.3")

    def breaks_later(request) -> None:
        gives(DATA, breaks_after=500_000)(request)
        request.wfile.flush()
        time.sleep(0.15)

    url = server.url("/a.tar", *[breaks_later] * 4, gives(DATA))
    start = time.monotonic()
    assert fetched(url) == DATA
    assert time.monotonic() - start > 0.6
    with pytest.raises(RemoteError, match=r"not fetched for 0\.3 s"):
        fetched(server.url("/b.tar", gives(DATA, breaks_after=1_000_000, heeds_range=False)))


def test_patience_of_whoever_waited_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAE_AST_SHARD_CACHE_PATIENCE_S", "100")
    waited = Patience("http://host/a.tar", since=time.monotonic() - 101)
    with pytest.raises(RemoteError, match="not fetched for 100 s"):
        waited.wait(ConnectionError("refused"))


@pytest.mark.parametrize("text", ["ten", "-1", "inf"])
def test_patience_must_be_a_number(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("MAE_AST_SHARD_CACHE_PATIENCE_S", text)
    expected = f"MAE_AST_SHARD_CACHE_PATIENCE_S={text}: expected a number of seconds"
    with pytest.raises(RemoteError, match=expected):
        Patience("http://host/a.tar")


def test_sums_are_those_of_sha256sum() -> None:
    text = f"{DIGEST.upper()} *./b.tar\r\n\n{DIGEST}  a b.tar\n"
    assert parse_sums(text, "SHA256SUMS") == {"b.tar": DIGEST, "a b.tar": DIGEST}
    with pytest.raises(ValueError, match=r"^F:2: 'oops' is not in the format of sha256sum"):
        parse_sums(f"{DIGEST}  a\noops\n", "F")


def test_damaged_sums_are_reported(server: WebServer) -> None:
    server.url("/SHA256SUMS", gives(b"oops\n"))
    with pytest.raises(RemoteError, match="SHA256SUMS:1: 'oops' is not in the format"):
        fetched(server.url("/a.tar", gives(DATA)))


# --- other schemes ------------------------------------------------------------------------------


class Bucket(MemoryFileSystem):
    """File system in memory; its reads fail while ``failures`` lists errors."""

    protocol = "s3"
    store: ClassVar[dict] = {}
    failures: ClassVar[list[Exception]] = []

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.removeprefix("s3://").lstrip("/")

    def _open(self, path, mode="rb", **options):
        file = super()._open(path, mode, **options)
        if mode == "rb" and self.failures:
            file.seek(0)
            read, left = file.read, [1_000_000]

            def failing(size=-1):
                if left[0] <= 0 and self.failures:
                    raise self.failures.pop(0)
                left[0] -= size
                return read(min(size, 700_000))

            file.read = failing
        return file


def test_other_schemes_are_resumed(monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", types.ModuleType("s3fs"))
    monkeypatch.setitem(import_module("fsspec.registry")._registry, "s3", Bucket)
    monkeypatch.setattr(fetching, "CHUNK", 600_000)
    bucket = fsspec.filesystem("s3")
    bucket.pipe("s3://speech/shards/a.tar", DATA)
    bucket.pipe("s3://speech/shards/SHA256SUMS", format_sums({"a.tar": DIGEST}).encode())
    assert fetched("s3://speech/shards/a.tar") == DATA
    Bucket.failures[:] = [OSError(5, "SlowDown"), ConnectionError("reset by peer")]
    assert fetched("s3://speech/shards/a.tar") == DATA
    assert not Bucket.failures
    with pytest.raises(RemoteError, match=r"b\.tar: cannot be fetched \(no such file\)"):
        fetched("s3://speech/shards/b.tar")


@pytest.mark.parametrize(
    ("url", "package"),
    [
        ("s3://b/a.tar", "s3fs is not installed, which s3:// needs: pip install s3fs"),
        ("gs://b/a.tar", "gcsfs is not installed, which gs:// needs: pip install gcsfs"),
        ("https://h/a.tar", "aiohttp is not installed, which https:// needs: pip install "
         "'mae-ast[remote]'"),
    ],
)  # fmt: skip
def test_a_missing_package_is_named(
    monkeypatch: pytest.MonkeyPatch, url: str, package: str
) -> None:
    for module in ("s3fs", "gcsfs", "aiohttp"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(RemoteError) as caught:
        fetched(url)
    assert str(caught.value).endswith(package)
    assert "\n" not in str(caught.value)


@pytest.fixture(autouse=True)
def logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mae_ast")
