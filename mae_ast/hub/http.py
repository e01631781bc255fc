"""Download a file over HTTP from the first mirror that works, resuming partial downloads.

A partial file is resumed only if the server sent a validator for its version of the file, a strong
ETag or else Last-Modified, and confirms that it is unchanged (RFC 9110, 13.1.5 and 14).
"""

from __future__ import annotations

import http.client
import os
import re
import socket
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pooch
import requests
import urllib3

from mae_ast.console import progress_bar, readable
from mae_ast.core.io.file_kinds import PLACEHOLDERS, describe
from mae_ast.hub.partial_file import DownloadError, PartialFile, Source

CONNECT_SECONDS = 10.0  # timeout of connecting
SILENT_SECONDS = 30.0  # timeout of reading: maximum time without data
ATTEMPTS = 20  # per mirror, as long as each attempt receives data
ATTEMPTS_FROM_START = 3  # the same, if the partial file cannot be resumed
PAUSE = 1.0  # s between two attempts
CHUNK = 1 << 20  # bytes
# Time until progress is shown, in seconds: on a terminal, elsewhere.
PROGRESS_DELAYS_S = (0.5, 10.0)


class _MirrorError(Exception):
    """A mirror that does not provide the file; retrying would not help."""


class _ChecksumError(_MirrorError):
    """A complete file with the wrong checksum."""


class _RetryableError(Exception):
    """A download that was interrupted; another attempt may succeed."""


class _StalePartError(_RetryableError):
    """The server does not continue the partial file."""


_RETRIED = (requests.RequestException, urllib3.exceptions.HTTPError, _RetryableError)


class MirrorDownloader:
    """Downloader that tries several mirrors and resumes partial files.

    Args:
        urls: URLs of the file, tried in this order, except that the mirror of a partial file from
            an earlier call is tried first.
        target: final path of the file; the partial file is written to the same folder.
        sha256: expected SHA-256 in hexadecimal digits; ``None`` accepts any.
        checksum_advice: added to the error message if no mirror has a file with this SHA-256.
    """

    def __init__(
        self, urls: Sequence[str], target: Path, sha256: str | None, checksum_advice: str = ""
    ) -> None:
        self.urls = urls
        self.part = PartialFile(target)
        self.sha256 = sha256
        self.checksum_advice = checksum_advice
        self._received = 0  # bytes received in the current attempt

    def download(self) -> str:
        """Download the file, trying all mirrors, and return its SHA-256.

        Raises:
            DownloadError: no mirror provided the file, or the disk is full.
        """
        mirrors = deque(sorted(self.urls, key=lambda mirror: self.part.source(mirror) is None))
        failures: dict[str, str] = {}
        advice = ""
        while mirrors:
            mirror = mirrors.popleft()
            resumed = self.part.source(mirror) is not None
            try:
                self._complete(mirror)
                self._check_content()
                sha256 = self._check_sum()
            except _MirrorError as error:
                failures[mirror] = str(error)
                if isinstance(error, _ChecksumError):
                    advice = self.checksum_advice
                    if resumed:  # the part of an earlier call may be damaged
                        mirrors.appendleft(mirror)
            else:
                self.part.finish()
                return sha256
        reasons = "; ".join(f"{mirror}: {reason}" for mirror, reason in failures.items())
        raise DownloadError(
            f"{self.part.name}: not downloaded: {reasons}{advice}{self._describe_part()}"
        )

    def _complete(self, url: str) -> None:
        """Complete the partial file from one mirror; retry while attempts receive data."""
        for attempt in range(1, ATTEMPTS + 1):
            self._received = 0
            try:
                return self._attempt(url)
            except _RETRIED as error:
                reason = _reason(error)
                if isinstance(error, _StalePartError):
                    self.part.discard()
                    continue
            allowed = ATTEMPTS if self.part.source(url) else ATTEMPTS_FROM_START
            if not self._received or attempt >= allowed:
                break
            time.sleep(PAUSE)
        raise _MirrorError(reason)

    def _attempt(self, url: str) -> None:
        source = self.part.source(url)
        if source and self.part.size == source.total:
            return  # an earlier call ended before the check
        headers = {"Accept-Encoding": "identity"}
        if source and source.validator:
            headers |= {"Range": f"bytes={self.part.size}-", "If-Range": source.validator}
        timeout = (CONNECT_SECONDS, SILENT_SECONDS)
        with requests.get(url, headers=headers, stream=True, timeout=timeout) as response:
            if source and response.status_code in (206, 416):
                if not _continues(response, source, self.part.size):
                    raise _StalePartError("does not resume where the partial file ends")
            elif response.status_code == 200:
                source = _source(url, response.headers)
                self._refuse(response, source)
                with self.part.room_for(None):
                    self.part.begin(source)
            else:
                raise _MirrorError(f"{response.status_code} {response.reason}")
            self._receive(response, source)

    def _refuse(self, response: requests.Response, source: Source) -> None:
        """Refuse a 200 response that is not the file, or that could be truncated unnoticed."""
        if response.headers.get("Content-Type", "").lower().startswith("text/html"):
            raise _MirrorError("returned a web page instead of the file")
        if (encoding := response.headers.get("Content-Encoding", "")) not in ("", "identity"):
            raise _MirrorError(f"returned Content-Encoding {encoding}, which was not requested")
        has_end = "chunked" in response.headers.get("Transfer-Encoding", "").lower()
        if source.total is None and not has_end and self.sha256 is None:
            raise _MirrorError("sent no Content-Length; without it, a SHA-256 must be given")

    def _receive(self, response: requests.Response, source: Source) -> None:
        with (
            self.part.room_for(source.total),
            open(self.part.path, "ab") as file,
            _progress(self.part.name, self.part.size, source.total) as progress,
        ):
            # read1 returns the data available, so that none is lost if the connection breaks.
            while chunk := response.raw.read1(CHUNK, decode_content=False):
                file.write(chunk)
                file.flush()  # can be resumed after kill -9
                self._received += len(chunk)
                progress.update(len(chunk))
            os.fsync(file.fileno())  # complete on disk before it is renamed
        if source.total not in (None, self.part.size):
            raise _RetryableError(f"ended at {self.part.size} of {source.total} bytes")

    def _check_content(self) -> None:
        """Refuse placeholders that servers send instead of the file, whatever the Content-Type."""
        if self.sha256 is None and (kind := describe(self.part.path)) in PLACEHOLDERS:
            self.part.discard()
            raise _MirrorError(f"returned {kind}")

    def _check_sum(self) -> str:
        actual: str = pooch.file_hash(str(self.part.path))
        if self.sha256 not in (None, actual):
            self.part.discard()
            raise _ChecksumError(f"wrong checksum: expected sha256 {self.sha256}, got {actual}")
        return actual

    def _describe_part(self) -> str:
        """Describe the partial file for the error message; remove it if it cannot be resumed."""
        if not any(self.part.source(url) for url in self.urls):
            self.part.discard()
            return ""
        kept = f"{readable(self.part.size)} are kept in {self.part.path}"
        return f"; {kept}; the next call resumes from there"


def _source(url: str, headers: Mapping[str, str]) -> Source:
    etag = headers.get("ETag", "")  # a weak ETag, W/"...", does not guarantee the same bytes
    validator = etag if etag.startswith('"') else headers.get("Last-Modified")
    length = headers.get("Content-Length", "")
    return Source(url, validator, int(length) if length.isdecimal() else None)


def _continues(response: requests.Response, source: Source, size: int) -> bool:
    """Return whether a response continues the partial file; some servers ignore If-Range."""
    is_etag = (source.validator or "").startswith('"')
    sent = response.headers.get("ETag" if is_etag else "Last-Modified", source.validator)
    found = re.match(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    return (
        response.status_code == 206
        and sent == source.validator
        and found is not None
        and int(found[1]) == size
        and (found[2] == "*" or source.total in (None, int(found[2])))
    )


def _progress(name: str, initial: int, total: int | None) -> Any:
    """Return the progress bar of a download, which a short one does not show."""
    delay = PROGRESS_DELAYS_S[0 if sys.stderr.isatty() else 1]
    return progress_bar(name, "B", total, initial, unit_scale=True, delay=delay)


def _reason(error: BaseException) -> str:
    """Describe an error briefly; requests and urllib3 wrap the cause several times."""
    if isinstance(error, requests.ConnectTimeout):
        return f"no connection within {CONNECT_SECONDS:g} s"
    if isinstance(error, requests.ReadTimeout | urllib3.exceptions.ReadTimeoutError):
        return f"no data for {SILENT_SECONDS:g} s"
    incomplete = http.client.IncompleteRead  # its causes are details of the protocol
    while not isinstance(error, incomplete) and (inner := error.__cause__ or error.__context__):
        error = inner
    if isinstance(error, incomplete):
        return "the connection ended early"
    if isinstance(error, socket.gaierror):
        return "host not found"
    text = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
    return " ".join(text.split())
