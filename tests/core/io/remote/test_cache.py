"""The cache of remote shards: its limit, its order of removal, and several processes."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from mae_ast.core.io.atomic import file_lock
from mae_ast.core.io.remote import cache
from mae_ast.core.io.remote.cache import cached_path, ensure, open_shard
from mae_ast.core.io.remote.prefetch import Prefetcher
from mae_ast.core.io.remote.urls import RemoteError
from tests.web_server import WebServer, fails, gives, gives_in_chunks

SIZE = 200_000
fork = get_context("fork")


def data(name: str) -> bytes:
    return np.random.default_rng(list(name.encode())).bytes(SIZE)


@pytest.fixture
def server() -> Iterator[WebServer]:
    with WebServer() as server:
        server.url("/SHA256SUMS", fails(404))
        for name in "abcdef":
            server.url(f"/{name}.tar", gives(data(name)))
        yield server


@pytest.fixture
def urls(server: WebServer) -> dict[str, str]:
    return {name: f"http://127.0.0.1:{server.server_port}/{name}.tar" for name in "abcdef"}


def limit(monkeypatch: pytest.MonkeyPatch, shards: float) -> None:
    monkeypatch.setenv("MAE_AST_SHARD_CACHE_GB", str(shards * SIZE / 1e9))


def read(url: str) -> bytes:
    shard = open_shard(url)
    try:
        return os.pread(shard, 2 * SIZE, 0)
    finally:
        os.close(shard)


def use_at(url: str, second: int) -> None:
    """Pretend that a shard was opened last at this second."""
    os.utime(cached_path(url), (second, second))


def test_a_cached_shard_needs_no_server(server: WebServer, urls, folder: Path) -> None:
    assert read(urls["a"]) == read(urls["a"]) == data("a")
    assert len(server.asked("/a.tar")) == 1
    assert [path.name for path in folder.iterdir()] == [cached_path(urls["a"]).name]
    assert cached_path(urls["a"]).name.endswith("-a.tar")


def test_least_recently_opened_shards_are_removed(
    urls, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(monkeypatch, 2.5)
    read(urls["a"])
    use_at(urls["a"], 1)
    read(urls["b"])
    use_at(urls["b"], 2)
    read(urls["a"])  # is now newer than b
    read(urls["c"])
    assert sorted(path.name[-5:] for path in folder.iterdir()) == ["a.tar", "c.tar"]


def test_an_open_shard_stays_readable(urls, monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, 1)
    shard = open_shard(urls["a"])
    read(urls["b"])
    assert not cached_path(urls["a"]).exists()
    assert os.pread(shard, SIZE, 0) == data("a")
    os.close(shard)


def test_the_limit_holds_while_several_shards_are_fetched(
    server: WebServer, urls, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(monkeypatch, 2)
    for name in "abcdef":
        server.url(f"/{name}.tar", gives(data(name), takes=0.02))
    seen, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            with os.scandir(folder.parent) as entries:
                if folder.name not in {entry.name for entry in entries}:
                    continue
            sizes = []
            for path in folder.iterdir():
                with contextlib.suppress(FileNotFoundError):
                    sizes.append(path.stat().st_size)
            seen.append(sum(sizes))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(read, [urls[name] for name in "abcdefabcdef"]))
    finally:
        done.set()
        watcher.join()
    assert found == [data(name) for name in "abcdefabcdef"]
    # A listing is no snapshot: a shard may be counted under both of its names.
    assert SIZE <= max(seen) <= 3 * SIZE
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 2 * SIZE


def test_a_shard_without_a_size_counts_when_it_is_complete(
    server: WebServer, urls, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(monkeypatch, 1)
    read(urls["a"])
    server.url("/b.tar", gives_in_chunks(data("b")))
    assert read(urls["b"]) == data("b")
    assert [path.name[-5:] for path in folder.iterdir()] == ["b.tar"]


def test_a_shard_larger_than_the_cache_is_refused(urls, monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, 0.5)
    expected = r"a\.tar: has 200000 bytes, .*; raise MAE_AST_SHARD_CACHE_GB to at least 0\.0002$"
    with pytest.raises(RemoteError, match=expected):
        read(urls["a"])


def test_two_processes_fetch_a_shard_once(server: WebServer, urls) -> None:
    server.url("/a.tar", gives(data("a"), takes=0.3))
    with fork.Pool(2) as pool:
        found = pool.map(read, [urls["a"]] * 2, chunksize=1)
    assert found == [data("a")] * 2
    assert len(server.asked("/a.tar")) == 1


def test_a_process_takes_over_from_one_that_was_killed(server: WebServer, urls, folder) -> None:
    server.url("/a.tar", gives(data("a"), takes=30), gives(data("a")))
    killed = fork.Process(target=read, args=(urls["a"],))
    killed.start()
    while not server.asked("/a.tar"):
        pass
    killed.kill()
    killed.join()
    assert len(list(folder.glob(".*a.tar.*.part"))) == 1
    assert read(urls["a"]) == data("a")
    assert [path.name[-5:] for path in folder.iterdir()] == ["a.tar"]


def test_parts_of_others_count_and_stay(urls, folder: Path, monkeypatch) -> None:
    limit(monkeypatch, 2)
    folder.mkdir()
    part = folder / ".x.tar.123.abcd.part"
    part.write_bytes(bytes(SIZE))
    with file_lock(folder / "x.tar"):
        read(urls["a"])
        read(urls["b"])
        assert part.exists()
        assert not cached_path(urls["a"]).exists()
    read(urls["c"])  # the process has ended
    assert not part.exists()
    assert cached_path(urls["b"]).exists()


def test_prefetching_skips_what_others_fetch_and_ignores_errors(
    server: WebServer, urls, folder: Path
) -> None:
    server.url("/b.tar", fails(404))
    folder.mkdir()
    prefetcher = Prefetcher()
    with file_lock(cached_path(urls["c"])):
        prefetcher.request([urls[name] for name in "abcd"])
        prefetcher.wait()
    assert sorted(path.name[-5:] for path in folder.glob("*.tar")) == ["a.tar", "d.tar"]
    prefetcher.request([urls["a"], urls["c"]])
    prefetcher.wait()
    assert cached_path(urls["c"]).exists()
    assert len(server.asked("/a.tar")) == 1


def test_a_cache_that_cannot_be_written_is_reported(
    urls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MAE_AST_SHARD_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(RemoteError, match=r"cannot be used \(Not a directory\); MAE_AST_SHARD"):
        ensure(urls["a"])


def test_full_disk(urls, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        name = "/cache/a.tar"

        def seek(self, place: int) -> None:
            pass

        def write(self, content: bytes) -> None:
            raise OSError(28, "No space left on device")

    from mae_ast.core.io.remote.fetch import fetch

    with pytest.raises(RemoteError, match=r"^/cache/a\.tar: could not be written \(No space"):
        fetch(urls["a"], Full())


def test_folder_of_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache.cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("MAE_AST_SHARD_CACHE")
    monkeypatch.setenv("MAE_AST_CACHE", str(tmp_path / "downloads"))
    assert cache.cache_folder() == tmp_path / "downloads" / "shards"
    monkeypatch.delenv("MAE_AST_CACHE")
    assert cache.cache_folder().name == "shards"
    monkeypatch.setenv("MAE_AST_SHARD_CACHE_GB", "many")
    with pytest.raises(RemoteError, match="MAE_AST_SHARD_CACHE_GB=many: expected a number of GB"):
        cache.cache_bytes()
