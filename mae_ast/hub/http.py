"""A file over HTTP, from the first of its mirrors that gives it, resumed where it broke off.

A part is resumed only if the server has a validator for this version of the file, a strong ETag or
else Last-Modified, and says by it that the version is still the same (RFC 9110, 13.1.5 and 14).
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

from mae_ast.console import progress_bar
from mae_ast.core.io.file_kinds import PLACEHOLDERS, describe
from mae_ast.hub.partial_file import DownloadError, PartialFile, Source, readable

CONNECT_SECONDS = 10.0  # to reach a server
SILENT_SECONDS = 30.0  # that a server may take for the next bytes
ATTEMPTS = 20  # at one mirror, as long as each of them brings something
ATTEMPTS_FROM_START = 3  # the same where a part cannot be resumed
PAUSE = 1.0  # s between two attempts
CHUNK = 1 << 20  # bytes
# Time until progress is shown, in seconds: on a terminal, elsewhere.
PROGRESS_DELAYS_S = (0.5, 10.0)


class _MirrorError(Exception):
    """Why a mirror does not give the file; another attempt would end the same."""


class _WrongSumError(_MirrorError):
    """The bytes are whole, but not those that are wanted."""


class _BrokenError(Exception):
    """Why an attempt ended before the file did."""


class _StalePartError(_BrokenError):
    """The server does not go on with the part as it is."""


_BROKEN = (requests.RequestException, urllib3.exceptions.HTTPError, _BrokenError)


class MirrorDownloader:
    """Several mirrors behind pooch's downloader protocol.

    Args:
        urls: where the file lies, in the order in which they are tried; the mirror that a part
            of an earlier call came from goes first.
        target: what the file will be called; parts lie beside it.
        sha256: what the file must have, in hexadecimal digits; ``None`` takes what comes. After a
            call it is what the file has.
        wrong_sum_advice: what to tell a person if no mirror has a file with this sum.
    """

    def __init__(
        self, urls: Sequence[str], target: Path, sha256: str | None, wrong_sum_advice: str = ""
    ) -> None:
        self.urls = urls
        self.part = PartialFile(target)
        self.sha256 = sha256
        self.wrong_sum_advice = wrong_sum_advice
        self._received = 0  # bytes, in the current attempt

    def __call__(self, url: str, output_file: str, pooch: object, check_only: bool = False) -> None:
        """Download to ``output_file``; ``url`` is one of the mirrors, and all of them are tried.

        Raises:
            DownloadError: no mirror gave the file, or the disk is full.
        """
        Path(output_file).unlink(missing_ok=True)  # empty; a kill would leave it for good
        mirrors = deque(sorted(self.urls, key=lambda mirror: self.part.source(mirror) is None))
        failures: dict[str, str] = {}
        advice = ""
        while mirrors:
            mirror = mirrors.popleft()
            resumed = self.part.source(mirror) is not None
            try:
                self._fill(mirror)
                self._check_content()
                self._check_sum()
            except _MirrorError as error:
                failures[mirror] = str(error)
                if isinstance(error, _WrongSumError):
                    advice = self.wrong_sum_advice
                    if resumed:  # what an earlier call left may be to blame
                        mirrors.appendleft(mirror)
            else:
                return self.part.finish(output_file)
        reasons = "; ".join(f"{mirror}: {reason}" for mirror, reason in failures.items())
        raise DownloadError(f"{self.part.name}: not downloaded: {reasons}{advice}{self._kept()}")

    def _fill(self, url: str) -> None:
        """Make the part whole from one mirror, in as many attempts as bring something."""
        for attempt in range(1, ATTEMPTS + 1):
            self._received = 0
            try:
                return self._attempt(url)
            except _BROKEN as error:
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
            return  # an earlier call ended between the last byte and the check
        headers = {"Accept-Encoding": "identity"}
        if source and source.validator:
            headers |= {"Range": f"bytes={self.part.size}-", "If-Range": source.validator}
        timeout = (CONNECT_SECONDS, SILENT_SECONDS)
        with requests.get(url, headers=headers, stream=True, timeout=timeout) as response:
            if source and response.status_code in (206, 416):
                if not _goes_on(response, source, self.part.size):
                    raise _StalePartError("does not go on where the part ends")
            elif response.status_code == 200:
                source = _source(url, response.headers)
                self._refuse(response, source)
                with self.part.room_for(None):
                    self.part.begin(source)
            else:
                raise _MirrorError(f"{response.status_code} {response.reason}")
            self._receive(response, source)

    def _refuse(self, response: requests.Response, source: Source) -> None:
        """Turn away what has status 200 and yet cannot be the file, or could be half of it."""
        if response.headers.get("Content-Type", "").lower().startswith("text/html"):
            raise _MirrorError("gives a web page instead of the file")
        if (encoding := response.headers.get("Content-Encoding", "")) not in ("", "identity"):
            raise _MirrorError(f"gives the file in {encoding} encoding, which was not asked for")
        has_end = "chunked" in response.headers.get("Transfer-Encoding", "").lower()
        if source.total is None and not has_end and self.sha256 is None:
            raise _MirrorError("does not say how long the file is; it takes a checksum to know")

    def _receive(self, response: requests.Response, source: Source) -> None:
        with (
            self.part.room_for(source.total),
            open(self.part.path, "ab") as file,
            _progress(self.part.name, self.part.size, source.total) as progress,
        ):
            # read1 gives what there is, so that nothing is lost when the rest does not come.
            while chunk := response.raw.read1(CHUNK, decode_content=False):
                file.write(chunk)
                file.flush()  # what a kill -9 leaves can be resumed
                self._received += len(chunk)
                progress.update(len(chunk))
            os.fsync(file.fileno())  # no power cut may leave its final name without its bytes
        if source.total not in (None, self.part.size):
            raise _BrokenError(f"ended at {self.part.size} of {source.total} bytes")

    def _check_content(self) -> None:
        """Refuse what servers send instead of the file, whatever its Content-Type."""
        if self.sha256 is None and (kind := describe(self.part.path)) in PLACEHOLDERS:
            self.part.discard()
            raise _MirrorError(f"gives {kind}")

    def _check_sum(self) -> None:
        actual = pooch.file_hash(str(self.part.path))
        if self.sha256 not in (None, actual):
            self.part.discard()
            raise _WrongSumError(f"wrong checksum: expected sha256 {self.sha256}, got {actual}")
        self.sha256 = actual

    def _kept(self) -> str:
        """What to say about the part; one that cannot be resumed is removed."""
        if not any(self.part.source(url) for url in self.urls):
            self.part.discard()
            return ""
        kept = f"{readable(self.part.size)} are kept in {self.part.path}"
        return f"; {kept}, and the next call goes on from there"


def _source(url: str, headers: Mapping[str, str]) -> Source:
    etag = headers.get("ETag", "")  # a weak one, W/"...", does not promise the same bytes
    validator = etag if etag.startswith('"') else headers.get("Last-Modified")
    length = headers.get("Content-Length", "")
    return Source(url, validator, int(length) if length.isdecimal() else None)


def _goes_on(response: requests.Response, source: Source, size: int) -> bool:
    """Whether the answer to a Range continues the part; not every server heeds If-Range."""
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
    """What was wrong, in a few words: requests and urllib3 wrap it several times."""
    if isinstance(error, requests.ConnectTimeout):
        return f"no connection within {CONNECT_SECONDS:g} s"
    if isinstance(error, requests.ReadTimeout | urllib3.exceptions.ReadTimeoutError):
        return f"nothing came for {SILENT_SECONDS:g} s"
    cut_short = http.client.IncompleteRead  # below it lie details of the protocol
    while not isinstance(error, cut_short) and (inner := error.__cause__ or error.__context__):
        error = inner
    if isinstance(error, cut_short):
        return "the connection ended early"
    if isinstance(error, socket.gaierror):
        return "host not found"
    words = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
    return " ".join(words.split())
