"""Open a remote file for reading from a byte onwards, through fsspec.

HTTP is read as one stream, so that a server needs no support for ranges. Other schemes are read in
ranges by their own packages (s3fs, gcsfs, huggingface_hub), which also find the credentials.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from mae_ast.core.io.first_line import first_line
from mae_ast.core.io.remote.urls import SCHEMES, RemoteError, scheme_of

CONNECT_S = 15.0  # timeout of connecting
SILENT_S = 60.0  # timeout of reading: maximum time without data
RANGE_BYTES = 2**24  # read at a time by schemes other than HTTP

# Of the statuses from 400 to 499. S3 reports a slow connection as 400, aiohttp a garbled response.
_WORTH_RETRYING = frozenset({400, 408, 425, 429})
# Mistakes of a program or its settings; everything else may be the network's fault.
_BUGS = (ImportError, TypeError, AttributeError, NameError, LookupError, AssertionError)


class WebPageError(Exception):
    """The server returned a web page instead of the file."""


class CutOffError(Exception):
    """The transfer ended before the end of the file."""


@dataclass
class Stream:
    """An open transfer.

    Args:
        file: source of the bytes, with ``read(size)``.
        start: first byte that it gives; 0 if the server does not resume.
        total: size of the whole file; ``None`` if the server does not tell.
        version: identifies this version of the file; ``None`` if the server does not tell.
    """

    file: Any
    start: int
    total: int | None
    version: str | None

    def read(self, size: int) -> bytes:
        """Read up to ``size`` bytes; none at the end."""
        content: bytes = self.file.read(size)
        return content


@contextmanager
def open_stream(url: str, start: int = 0, version: str | None = None) -> Iterator[Stream]:
    """Open a remote file.

    Args:
        url: URL of the file.
        start: first byte wanted; the stream begins at 0 if it cannot begin there.
        version: version of the file that earlier bytes belong to; if it is another one now, the
            stream begins at 0. ``None``: not known, and any version will do.

    Raises:
        RemoteError: the package that reads this scheme is not installed.
        Exception: of any kind, depending on the package; see :func:`is_permanent`.
    """
    system = _file_system(url)
    opened = (_by_http if scheme_of(url) in ("http", "https") else _by_ranges)(
        system, url, start, version
    )
    try:
        yield opened
    finally:
        opened.file.close()


def is_permanent(error: Exception) -> bool:
    """Return whether trying again is of no use: a missing file, no permission, a wrong address."""
    if isinstance(error, (FileNotFoundError, PermissionError, ValueError, WebPageError, *_BUGS)):
        return True
    status = _status(error)
    return status is not None and 400 <= status < 500 and status not in _WORTH_RETRYING


def retry_after(error: Exception) -> float:
    """Return the seconds that the server asks to wait (``Retry-After``); 0 if it does not."""
    headers = getattr(error, "headers", None) or getattr(_response(error), "headers", None) or {}
    try:
        return max(0.0, float(headers.get("Retry-After", 0)))
    except (TypeError, ValueError, AttributeError):  # a date
        return 0.0


def reason(error: Exception) -> str:
    """Describe an error of a transfer briefly."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    status = _status(error)
    if status is not None:
        return f"status {status}"
    if type(error).__name__ == "ClientPayloadError":  # of aiohttp, with details of the protocol
        return "the connection ended early"
    return first_line(error) or type(error).__name__


def _after_fork() -> None:
    """Let fsspec start a thread of its own in a forked process, such as a data worker."""
    if (asyn := sys.modules.get("fsspec.asyn")) is not None:
        asyn.reset_lock()


# Older fsspec waits for the parent's thread, forever. Remove when 2026.9 is the oldest one allowed.
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)


def _file_system(url: str) -> Any:
    scheme = scheme_of(url)
    module, package = SCHEMES[scheme]
    try:
        __import__(module)
        import fsspec
    except ImportError as error:
        missing = error.name or module
        raise RemoteError(
            f"{url}: {missing} is not installed, which {scheme}:// needs: pip install {package}"
        ) from error
    if scheme not in ("http", "https"):
        return fsspec.filesystem(scheme)
    import aiohttp

    # aiohttp would end each transfer after five minutes, and ignore the proxy of the environment.
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENT_S)
    # Its buffer stays small: if a connection breaks, what is in it is lost.
    return fsspec.filesystem(scheme, client_kwargs={"timeout": timeout, "trust_env": True})


def _by_http(system: Any, url: str, start: int, version: str | None) -> Stream:
    headers = {"Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if version is not None:
            headers["If-Range"] = version
    try:
        # With a size, fsspec does not ask for it; with a block size of 0, it streams.
        file = system.open(url, "rb", block_size=0, size=1, headers=headers)
    except Exception as error:
        if _status(error) != 416 or not start:
            raise
        return _by_http(system, url, 0, None)  # the file is shorter now
    status, sent = file.r.status, file.r.headers
    if sent.get("Content-Type", "").lower().startswith("text/html"):
        file.close()
        raise WebPageError("a web page instead of the file")
    # A weak ETag does not guarantee the same bytes.
    etag = sent.get("ETag", "")
    found = etag if etag.startswith('"') else sent.get("Last-Modified")
    if status == 206:
        part = re.match(r"bytes (\d+)-\d+/(\d+|\*)", sent.get("Content-Range", ""))
        if part is None or int(part[1]) != start or (version and found not in (None, version)):
            file.close()
            return _by_http(system, url, 0, None)
        return Stream(file, start, int(part[2]) if part[2] != "*" else None, found or version)
    length = sent.get("Content-Length", "")
    return Stream(file, 0, int(length) if length.isdecimal() else None, found)


def _by_ranges(system: Any, url: str, start: int, version: str | None) -> Stream:
    system.invalidate_cache()  # a listing that is older than the file
    found = str(system.ukey(url))
    file = system.open(url, "rb", block_size=RANGE_BYTES, cache_type="readahead")
    if version not in (None, found) or start > file.size:
        start = 0
    file.seek(start)
    return Stream(file, start, int(file.size), found)


def _status(error: Exception) -> int | None:
    """Return the HTTP status of an error of aiohttp, gcsfs, requests, httpx or botocore."""
    response = _response(error)
    if isinstance(response, dict):  # botocore
        response = response.get("ResponseMetadata", {})
        found = response.get("HTTPStatusCode")
    else:
        found = getattr(response, "status_code", None)
    for value in (found, getattr(error, "status", None), getattr(error, "code", None)):
        if isinstance(value, int) or (isinstance(value, str) and value.isdecimal()):
            return int(value)
    return None


def _response(error: Exception) -> Any:
    return getattr(error, "response", None)
