"""Downloads from a misbehaving server: files received, error messages, files left behind."""

import fcntl
import hashlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pooch
import pytest

from mae_ast.hub import http
from mae_ast.hub.download import DownloadError, cache_folder, download, name_from_url
from tests.web_server import (
    WebServer,
    fails,
    free_port,
    gives,
    gives_in_chunks,
    hangs,
    resets,
)

DATA = random.Random(0).randbytes(100_000)
OTHER = random.Random(1).randbytes(100_000)
NAME = "model.pt"
DATED = {"etag": None, "Last_Modified": "Fri, 01 Jul 2022 00:00:00 GMT"}


def sha256(data):
    return hashlib.sha256(data).hexdigest()


@pytest.fixture(autouse=True)
def _quick_and_direct(monkeypatch):
    monkeypatch.setattr(http, "PAUSE", 0.0)
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture
def server():
    with WebServer() as running:
        yield running


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


def files(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def error_of(*arguments):
    """Return the message of a failing download, which must be one line."""
    with pytest.raises(DownloadError) as raised:
        download(*arguments)
    message = str(raised.value)
    assert "\n" not in message
    return message


def assert_complete(folder, data=DATA):
    """Assert that the folder contains the file and its checksum, and nothing else."""
    assert files(folder) == [NAME, f"{NAME}.sha256", f"{NAME}.verified"]
    assert (folder / NAME).read_bytes() == data
    assert (folder / f"{NAME}.sha256").read_text() == f"{sha256(data)}  {NAME}\n"


def leave_part(server, folder, data=DATA, size=30_000, path="/file", **headers):
    """Leave a partial file, as after a server that stopped answering."""
    url = server.url(path, gives(data, breaks_after=size, **headers), resets)
    message = error_of([url], NAME, None, folder)
    assert files(folder) == [f"{NAME}.part", f"{NAME}.part.json"]
    assert (folder / f"{NAME}.part").read_bytes() == data[:size]
    server.requests.clear()
    return url, message


# Downloads and resuming


@pytest.mark.parametrize("behaviour", [gives(DATA), gives(DATA, **DATED), gives_in_chunks(DATA)])
def test_file_and_checksum_are_written(server, folder, behaviour):
    path = download([server.url("/file", behaviour)], NAME, None, folder)
    assert path == folder / NAME
    assert_complete(folder)
    (asked,) = server.asked("/file")
    assert asked["Accept-Encoding"] == "identity"
    assert "Range" not in asked
    done = subprocess.run(["sha256sum", "--check", f"{NAME}.sha256"], cwd=folder, check=False)
    assert done.returncode == 0


@pytest.mark.parametrize("headers", [{}, DATED])
def test_broken_connection_is_resumed(server, folder, headers):
    script = [gives(DATA, breaks_after=30_000, **headers), gives(DATA, **headers)]
    download([server.url("/file", *script)], NAME, None, folder)
    assert_complete(folder)
    first, second = server.asked("/file")
    assert "Range" not in first
    assert second["Range"] == "bytes=30000-"
    assert second["If-Range"] == headers.get("Last_Modified", '"1"')


def test_attempts_continue_while_data_is_received_up_to_a_limit(server, folder):
    url = server.url("/file", gives(DATA, breaks_after=10_000))
    download([url], NAME, None, folder)
    assert len(server.asked("/file")) == 10
    assert_complete(folder)

    url = server.url("/slow", gives(DATA, breaks_after=100))
    message = error_of([url], "slow.pt", None, folder)
    assert len(server.asked("/slow")) == http.ATTEMPTS
    assert (folder / "slow.pt.part").stat().st_size == 100 * http.ATTEMPTS
    assert "the connection ended early" in message


def test_mirror_without_data_is_tried_once(server, folder):
    error_of([server.url("/file", resets)], NAME, None, folder)
    assert len(server.asked("/file")) == 1


def test_next_call_resumes_the_partial_file(server, folder):
    url, message = leave_part(server, folder)
    assert message == (
        f"{NAME}: not downloaded: {url}: Connection reset by peer; 30.0kB are kept in "
        f"{folder}/{NAME}.part; the next call resumes from there"
    )
    url = server.url("/file", gives(DATA))
    download([url], NAME, None, folder)
    (asked,) = server.asked("/file")
    assert asked["Range"] == "bytes=30000-"
    assert_complete(folder)


@pytest.mark.parametrize(
    ("answer", "requests"),
    [
        (gives(DATA, heeds_range=False), 1),
        (gives(DATA, etag='"2"'), 1),  # another version, so If-Range returns the full file
        (gives(DATA, etag='"2"', heeds_if_range=False), 2),
        (gives(DATA, Content_Range="bytes 29999-99999/100000"), 2),
        (gives(DATA, Content_Range="bytes 30000-99999/100001"), 2),
        (gives(DATA, Content_Range=None), 2),
        (fails(416, Content_Range="bytes */100000"), 2),
    ],
    ids=["no Range", "changed", "changed, no If-Range", "start", "total", "no range", "416"],
)
def test_download_restarts_if_the_answer_does_not_continue_the_part(
    server, folder, answer, requests
):
    url, _ = leave_part(server, folder, data=OTHER)
    url = server.url("/file", answer, gives(DATA))
    download([url], NAME, None, folder)
    assert [headers.get("Range") for headers in server.asked("/file")] == (
        ["bytes=30000-", None][:requests]
    )
    assert_complete(folder)


@pytest.mark.parametrize("etag", [None, 'W/"1"'])
def test_nothing_is_resumed_or_kept_without_a_validator(server, folder, etag):
    url = server.url("/file", gives(DATA, etag=etag, breaks_after=30_000))
    message = error_of([url], NAME, None, folder)
    assert message == f"{NAME}: not downloaded: {url}: the connection ended early"
    assert files(folder) == []
    asked = server.asked("/file")
    assert len(asked) == http.ATTEMPTS_FROM_START
    assert not any("Range" in headers for headers in asked)


@pytest.mark.parametrize(
    "change",
    [
        lambda notes: "",
        lambda notes: "[1]",
        lambda notes: json.dumps(notes | {"url": "http://elsewhere/"}),
        lambda notes: json.dumps(notes | {"validator": None}),
        lambda notes: json.dumps(notes | {"total": 29_999}),
        lambda notes: json.dumps(notes | {"more": 1}),
    ],
)
def test_download_restarts_if_the_source_of_the_part_is_invalid(server, folder, change):
    leave_part(server, folder, data=OTHER)
    notes = folder / f"{NAME}.part.json"
    notes.write_text(change(json.loads(notes.read_text())))
    download([server.url("/file", gives(DATA))], NAME, None, folder)
    (asked,) = server.asked("/file")
    assert "Range" not in asked
    assert_complete(folder)


def test_complete_part_needs_no_request(server, folder):
    url, _ = leave_part(server, folder)
    (folder / f"{NAME}.part").write_bytes(DATA)
    download([url], NAME, None, folder)
    assert not server.requests
    assert_complete(folder)


def test_resumed_file_with_wrong_checksum_is_downloaded_again(server, folder):
    leave_part(server, folder)
    (folder / f"{NAME}.part").write_bytes(bytes(30_000))  # as after a power cut
    download([server.url("/file", gives(DATA))], NAME, sha256(DATA), folder)
    assert [headers.get("Range") for headers in server.asked("/file")] == ["bytes=30000-", None]
    assert_complete(folder)


def test_short_ranges_are_continued(server, folder):
    short = {"Content_Length": "10000"}  # a range that should contain the rest
    script = [gives(DATA, breaks_after=30_000), gives(DATA, breaks_after=10_000, **short)]
    download([server.url("/file", *script)], NAME, None, folder)
    assert [headers.get("Range") for headers in server.asked("/file")][1:] == [
        f"bytes={start}-" for start in range(30_000, 100_000, 10_000)
    ]
    assert_complete(folder)


def test_truncated_chunked_response_is_an_error(server, folder):
    url = server.url("/file", gives_in_chunks(DATA, breaks_after=30_000))
    assert "the connection ended early" in error_of([url], NAME, None, folder)
    assert files(folder) == []


def test_file_of_unknown_length_needs_a_checksum(server, folder):
    url = server.url("/file", gives(DATA, Content_Length=None))
    message = error_of([url], NAME, None, folder)
    assert "no Content-Length" in message
    assert files(folder) == []
    download([url], NAME, sha256(DATA), folder)
    assert_complete(folder)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"<!DOCTYPE html><html>Sign in</html>", "a web page (HTML)"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\n", "a Git LFS pointer"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "an XML document"),
    ],
    ids=["web page", "Git LFS", "XML"],
)
def test_placeholders_are_not_kept(server, folder, content, kind):
    url = server.url("/file", gives(content))
    assert error_of([url], NAME, None, folder).startswith(
        f"{NAME}: not downloaded: {url}: returned {kind}"
    )
    assert files(folder) == []
    download(
        [server.url("/bad", gives(content)), server.url("/good", gives(DATA))], NAME, None, folder
    )
    assert_complete(folder)
    path = download([url], "page.html", sha256(content), folder)
    assert path.read_bytes() == content  # accepted, as the checksum matches


# Mirrors


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (fails(404), "404 Not Found"),
        (fails(500), "500 Internal Server Error"),
        (fails(200, b"moved", Content_Type="text/html"), "returned a web page instead of the file"),
        (gives(DATA, Content_Encoding="gzip"), "returned Content-Encoding gzip"),
        (resets, "Connection reset by peer"),
        (hangs(3), "no data for 0.2 s"),
        (hangs(3, DATA[:10], Content_Length="100000"), "no data for 0.2 s"),
        (gives(OTHER), f"wrong checksum: expected sha256 {sha256(DATA)}, got {sha256(OTHER)}"),
    ],
    ids=["404", "500", "web page", "gzip", "reset", "silent", "falls silent", "wrong bytes"],
)
def test_second_mirror_is_used_if_the_first_fails(server, folder, monkeypatch, failure, reason):
    monkeypatch.setattr(http, "SILENT_SECONDS", 0.2)
    urls = [server.url("/bad", failure), server.url("/good", gives(DATA))]
    download(urls, NAME, sha256(DATA), folder)
    assert_complete(folder)
    assert len(server.asked("/bad")) >= 1
    assert len(server.asked("/good")) == 1
    message = error_of(urls[:1], "other.pt", sha256(DATA), folder)
    assert message.startswith(f"other.pt: not downloaded: {urls[0]}: {reason}")
    assert_complete(folder)


def test_all_mirrors_failing_is_an_error(server, folder, monkeypatch):
    def no_such_host(host, *arguments, **keywords):
        if host == "nowhere.invalid":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return resolve(host, *arguments, **keywords)

    resolve = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", no_such_host)
    refused = f"http://127.0.0.1:{free_port()}/file"
    urls = ["http://nowhere.invalid/file", refused, server.url("/gone", fails(404))]
    assert error_of(urls, NAME, None, folder) == (
        f"{NAME}: not downloaded: {urls[0]}: host not found; "
        f"{refused}: Connection refused; {urls[2]}: 404 Not Found"
    )
    assert files(folder) == []


def test_part_is_not_continued_from_another_mirror(server, folder):
    urls = [
        server.url("/one", gives(OTHER, breaks_after=30_000), resets),
        server.url("/two", gives(DATA)),
    ]
    download(urls, NAME, None, folder)
    (asked,) = server.asked("/two")
    assert "Range" not in asked
    assert_complete(folder)


def test_part_survives_failure_of_another_mirror(server, folder):
    first = server.url("/one", resets)
    second, _ = leave_part(server, folder, path="/two")
    server.url("/two", resets)
    error_of([first, second], NAME, None, folder)
    assert (folder / f"{NAME}.part").stat().st_size == 30_000
    server.requests.clear()
    server.url("/one", gives(OTHER))
    server.url("/two", gives(DATA))
    download([first, second], NAME, None, folder)
    assert not server.asked("/one")  # the mirror of the part is tried first
    assert server.asked("/two")[0]["Range"] == "bytes=30000-"
    assert_complete(folder)


# Checksums


def test_file_with_wrong_checksum_is_removed(server, folder):
    url = server.url("/file", gives(OTHER))
    assert error_of([url], NAME, sha256(DATA), folder) == (
        f"{NAME}: not downloaded: {url}: wrong checksum: expected sha256 {sha256(DATA)}, "
        f"got {sha256(OTHER)}"
    )
    assert files(folder) == []
    assert len(server.asked("/file")) == 1


def test_damaged_file_is_downloaded_again_and_verified(server, folder):
    url = server.url("/file", gives(DATA))
    path = download([url], NAME, None, folder)
    path.write_bytes(DATA[:-1] + b"?")
    assert download([url], NAME, None, folder) == path
    assert_complete(folder)
    assert len(server.asked("/file")) == 2

    path.write_bytes(DATA[:-1] + b"?")
    server.url("/file", gives(OTHER))
    record = folder / f"{NAME}.sha256"
    assert error_of([url], NAME, None, folder) == (
        f"{NAME}: not downloaded: {url}: wrong checksum: expected sha256 {sha256(DATA)}, "
        f"got {sha256(OTHER)}; delete {record} to accept the new file"
    )
    assert NAME not in files(folder)  # the damaged file must not be accepted instead

    record.unlink()
    download([url], NAME, None, folder)
    assert_complete(folder, OTHER)


def test_given_checksum_takes_precedence_over_the_recorded_one(server, folder):
    url = server.url("/file", gives(DATA))
    download([url], NAME, None, folder)
    message = error_of([url], NAME, sha256(OTHER), folder)  # perhaps a typo
    assert f"expected sha256 {sha256(OTHER)}, got {sha256(DATA)}" in message
    assert_complete(folder)

    server.url("/file", gives(OTHER))
    download([url], NAME, f" {sha256(OTHER).upper()}\n", folder)
    assert_complete(folder, OTHER)
    count = len(server.requests)
    (folder / f"{NAME}.sha256").write_text(f"{sha256(DATA)}  {NAME}\n")
    download([url], NAME, sha256(OTHER), folder)
    assert_complete(folder, OTHER)
    assert len(server.requests) == count


def test_file_copied_by_hand_is_accepted_and_recorded(folder):
    folder.mkdir()
    (folder / NAME).write_bytes(DATA)
    download([f"http://127.0.0.1:{free_port()}/"], NAME, None, folder)
    assert_complete(folder)


@pytest.fixture
def hashed(monkeypatch):
    """Record the names of the files that are hashed."""
    names, file_hash = [], pooch.file_hash

    def hash_and_record(path):
        names.append(Path(path).name)
        return file_hash(path)

    monkeypatch.setattr(pooch, "file_hash", hash_and_record)
    return names


def cached(folder, data=DATA, age=10.0):
    """Copy a file into the cache that was modified ``age`` seconds ago."""
    folder.mkdir(exist_ok=True)
    (folder / NAME).write_bytes(data)
    then = time.time() - age
    os.utime(folder / NAME, (then, then))


def test_unchanged_file_is_hashed_once(folder, hashed):
    cached(folder)
    for given in (None, None, sha256(DATA)):
        download(["http://127.0.0.1/"], NAME, given, folder)
    assert hashed == [NAME]
    download(["http://127.0.0.1/"], NAME, None, folder, verify=True)
    assert hashed == [NAME] * 2


def test_downloaded_file_is_hashed_once(server, folder, hashed, monkeypatch):
    monkeypatch.setattr("mae_ast.hub.download.CLOCK_TICK_NS", 0)
    url = server.url("/file", gives(DATA))
    for _ in range(3):
        download([url], NAME, None, folder)
    assert hashed == [f"{NAME}.part"]


@pytest.mark.parametrize("change", ["size", "time", "note", "neither"])
def test_changed_file_is_hashed_again(server, folder, hashed, change):
    cached(folder)
    url = server.url("/file", gives(DATA))
    download([url], NAME, None, folder)
    if change == "size":
        cached(folder, DATA[:-1])
    elif change == "time":
        cached(folder, DATA[:-1] + b"?", age=9.0)
    elif change == "note":
        (folder / f"{NAME}.verified").write_text("{}")
    download([url], NAME, None, folder)
    assert_complete(folder)
    assert len(server.requests) == (change in ("size", "time"))
    assert (len(hashed) == 1) == (change == "neither")


def test_file_modified_in_the_instant_of_its_check_is_hashed_again(server, folder, hashed):
    cached(folder, age=0.0)
    url = server.url("/file", gives(DATA))
    download([url], NAME, None, folder)
    status = (folder / NAME).stat()
    (folder / NAME).write_bytes(DATA[:-1] + b"?")
    os.utime(folder / NAME, ns=(status.st_atime_ns, status.st_mtime_ns))  # the same tick
    download([url], NAME, None, folder)
    assert_complete(folder)
    assert len(server.requests) == 1


def test_changed_file_is_refused_if_the_server_has_another(server, folder):
    cached(folder)
    url = server.url("/file", gives(OTHER))
    download([url], NAME, None, folder)
    cached(folder, DATA[:-1] + b"?", age=5.0)
    assert f"expected sha256 {sha256(DATA)}, got" in error_of([url], NAME, None, folder)


def test_invalid_checksum_file_is_named(folder):
    folder.mkdir()
    (folder / NAME).write_bytes(DATA)
    (folder / f"{NAME}.sha256").write_text("not found\n")
    message = error_of(["http://127.0.0.1/"], NAME, None, folder)
    assert message.startswith(f"{folder}/{NAME}.sha256: ")
    assert "sha256sum" in message


@pytest.mark.parametrize("wrong", ["", "abc", "g" * 64, "a" * 63])
def test_invalid_checksum_is_refused(folder, wrong):
    with pytest.raises(ValueError, match="64 hexadecimal digits"):
        download(["http://127.0.0.1/"], NAME, wrong, folder)
    assert not folder.exists()


# The cache


def test_cached_file_is_used_without_network(server, folder, monkeypatch):
    url = server.url("/file", gives(DATA))
    path = download([url], NAME, None, folder)
    server.requests.clear()

    def no_network(*arguments, **keywords):
        raise AssertionError("a cached file needs no network")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    folder.chmod(0o555)  # read-only
    try:
        assert download([url], NAME, None, folder) == path
        assert download([url], NAME, sha256(DATA), folder) == path
    finally:
        folder.chmod(0o755)
    assert not server.requests


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("MAE_AST_CACHE", str(tmp_path / "here"))
    assert cache_folder() == tmp_path / "here"
    monkeypatch.setenv("MAE_AST_CACHE", "~/models")
    assert cache_folder() == Path.home() / "models"
    monkeypatch.delenv("MAE_AST_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "mae-ast"


def test_names_from_urls_are_safe_and_unique():
    name = name_from_url("https://host/a/b/model%20one.pt?token=/../x#y")
    assert re.fullmatch(r"model_one-[0-9a-f]{12}\.pt", name)
    urls = [
        *("https://a/m.pt", "https://b/m.pt", "https://a/m.pt?v=2", "http://a/m.pt"),
        *("https://a/", "https://a", "https://a/..", "https://a/%2e%2e%2fm.pt", "https://a/.pt"),
        f"https://a/{'x' * 300}.pt",
    ]
    names = {name_from_url(url) for url in urls}
    assert len(names) == len(urls)
    for name in names:
        assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,120}", name)


@pytest.mark.parametrize("url", ["ftp://host/file", "file:///etc/passwd", "https:///file", "m.pt"])
def test_other_urls_are_refused(url):
    with pytest.raises(ValueError, match=rf"{url}: .*https://host/path/file"):
        name_from_url(url)


def test_cache_folder_below_a_file_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    message = error_of(["http://127.0.0.1/"], NAME, None, tmp_path / "file" / "cache")
    assert message == f"{tmp_path}/file/cache/{NAME}: cannot be written or read (Not a directory)"


# Processes

# Programs started in the background may ignore SIGINT, and so would their children.
SCRIPT = textwrap.dedent("""
    import signal
    import sys
    from pathlib import Path
    from mae_ast.hub import http
    from mae_ast.hub.download import download
    signal.signal(signal.SIGINT, signal.default_int_handler)
    http.PAUSE = 0.0
    print(download(sys.argv[2:], "model.pt", None, Path(sys.argv[1])))
""")


def start(folder, *urls):
    command = [sys.executable, "-c", SCRIPT, folder, *urls]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path.cwd()
    )


def test_only_one_of_three_processes_downloads(server, folder):
    url = server.url("/file", gives(DATA, takes=0.7))
    running = [start(folder, url) for _ in range(3)]
    for process in running:
        out, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        assert out == f"{folder}/{NAME}\n"
        assert "Downloading" not in errors  # pooch is quiet
    assert len(server.asked("/file")) == 1
    assert_complete(folder)


def test_waiting_for_another_process_is_logged(server, folder, monkeypatch, caplog):
    monkeypatch.setattr("mae_ast.hub.download.PATIENCE", 0.05)
    folder.mkdir()
    other = os.open(folder / f"{NAME}.lock", os.O_CREAT | os.O_RDWR)
    fcntl.flock(other, fcntl.LOCK_EX)
    threading.Timer(0.3, os.close, [other]).start()
    download([server.url("/file", gives(DATA))], NAME, None, folder)
    assert caplog.messages == [f"waiting for another process to download {folder / NAME}"]
    assert_complete(folder)


def test_next_process_resumes_after_a_failure(server, folder):
    breaks = gives(DATA, breaks_after=30_000)
    url = server.url("/file", breaks, fails(500), gives(DATA))
    codes = sorted(process.wait(60) for process in [start(folder, url) for _ in range(2)])
    assert codes == [0, 1]
    assert [headers.get("Range") for headers in server.asked("/file")] == [
        None,
        "bytes=30000-",
        "bytes=30000-",
    ]
    assert_complete(folder)


def test_keyboard_interrupt_keeps_the_part(server, folder, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    url = server.url("/file", gives(DATA))
    monkeypatch.setattr(http.os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        download([url], NAME, None, folder)
    assert files(folder) == [f"{NAME}.part", f"{NAME}.part.json"]
    monkeypatch.undo()
    download([url], NAME, None, folder)
    assert_complete(folder)


@pytest.mark.parametrize(
    ("number", "stays"),
    [(signal.SIGINT, []), (signal.SIGKILL, [f"{NAME}.lock"])],
)
def test_signalled_process_leaves_the_part(server, folder, number, stays):
    half = hangs(20, DATA[:30_000], Content_Length="100000", ETag='"1"')
    process = start(folder, server.url("/file", half))
    part = folder / f"{NAME}.part"
    while process.poll() is None and not (part.exists() and part.stat().st_size == 30_000):
        time.sleep(0.02)
    process.send_signal(number)
    process.communicate(timeout=20)
    assert process.returncode == -number
    assert files(folder) == [*stays, part.name, f"{NAME}.part.json"]
    assert part.read_bytes() == DATA[:30_000]
    server.requests.clear()
    download([server.url("/file", gives(DATA))], NAME, None, folder)
    assert server.asked("/file")[0]["Range"] == "bytes=30000-"
    assert_complete(folder)


# A full disk


def test_small_disk_is_noticed_before_the_first_byte(server, small_disk):
    url = server.url("/file", hangs(5, Content_Length="100000"))
    message = error_of([url], NAME, None, small_disk)
    assert message == (
        f"{small_disk}: no space left on device: {NAME} needs 100kB, 65.5kB are free"
    )
    assert files(small_disk) == []


@pytest.mark.parametrize("taken", [0, 60 << 10])
def test_disk_that_becomes_full_during_the_download(server, small_disk, taken):
    (small_disk / "other").write_bytes(bytes(taken))
    url = server.url("/file", gives_in_chunks(DATA, ETag='"1"'))
    message = error_of([url], NAME, None, small_disk)
    free = "65.5kB" if not taken else "4.10kB"
    assert message == (
        f"{small_disk}: no space left on device: {NAME} needs more than {free}, {free} are free"
    )
    assert files(small_disk) == ["other"]


def test_no_progress_is_shown_for_short_downloads(server, folder, capsys):
    download([server.url("/file", gives(DATA))], NAME, None, folder)
    assert capsys.readouterr().err == ""


def test_progress_is_shown_for_long_downloads(server, folder, capsys, monkeypatch):
    monkeypatch.setattr(http, "PROGRESS_DELAYS_S", (0.0, 0.0))
    download([server.url("/file", gives(DATA))], NAME, None, folder)
    assert f"{NAME}: 100%" in capsys.readouterr().err
