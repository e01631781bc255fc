"""Fetch a whole remote file: resume broken transfers, wait for the server, verify the content."""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Callable
from typing import BinaryIO

from mae_ast.core.io.remote.patience import Patience
from mae_ast.core.io.remote.sums import SUMS_FILE, parse_sums
from mae_ast.core.io.remote.transfer import CutOffError, is_permanent, open_stream, reason
from mae_ast.core.io.remote.urls import RemoteError, folder_of, name_of

CHUNK = 2**20  # bytes
ATTEMPTS = 3  # at a file whose content is wrong

logger = logging.getLogger(__name__)


class RefusedError(RemoteError):
    """The server does not have the file, or does not give it to this user."""


_sums: dict[str, dict[str, str]] = {}  # folder to its checksums, read once by each process


def fetch(
    url: str,
    file: BinaryIO,
    reserve: Callable[[int], None] = lambda size: None,
    since: float | None = None,
) -> None:
    """Write a remote shard to a file, and verify it if its folder has ``SHA256SUMS``.

    Args:
        url: URL of the shard.
        file: empty file; written from its start.
        reserve: called with the size, once the server tells it, before anything is written.
        since: see :class:`Patience`.

    Raises:
        RemoteError: the shard does not exist, its content is wrong, or the server did not answer
            for too long.
        OSError: the file cannot be written.
    """
    patience = Patience(url, since)
    for attempt in range(1, ATTEMPTS + 1):
        expected = _expected(url, read_again=attempt > 1)
        file.seek(0)
        found = _transfer(url, file, reserve, patience, is_verified=expected is not None)
        if expected in (None, found):
            return
        problem = f"SHA-256 is {found}, but {SUMS_FILE} in its folder has {expected}"
        if attempt < ATTEMPTS:
            logger.warning("%s: %s; fetching it again", url, problem)
    raise RemoteError(
        f"{url}: {problem}, {ATTEMPTS} times in a row; upload the shard again, with its {SUMS_FILE}"
    )


def _transfer(
    url: str,
    file: BinaryIO,
    reserve: Callable[[int], None],
    patience: Patience,
    is_verified: bool,
) -> str:
    """Write all bytes to a file and return their SHA-256.

    Args:
        url, file, reserve: see :func:`fetch`.
        patience: the time that is left.
        is_verified: the content is verified afterwards; else a broken transfer is only resumed if
            the server tells that the file is still the same.
    """
    digest, done, furthest = hashlib.sha256(), 0, 0
    version: str | None = None
    while True:
        try:
            start = done if is_verified or version is not None else 0
            with open_stream(url, start, version) as stream:
                if stream.start != done:
                    digest, done = hashlib.sha256(), 0
                version = stream.version
                if stream.total is not None:
                    reserve(stream.total)
                _write(file, done, b"")
                while content := stream.read(CHUNK):
                    _write(file, done, content)
                    digest.update(content)
                    done += len(content)
                    if done > furthest:
                        furthest = done
                        patience.progress()
                if stream.total not in (None, done):
                    raise CutOffError(f"the transfer ended after {done} of {stream.total} bytes")
            file.truncate(done)
            return digest.hexdigest()
        except RemoteError:
            raise
        except Exception as error:
            if is_permanent(error):
                raise RefusedError(f"{url}: cannot be fetched ({reason(error)})") from error
            patience.wait(error)


def _write(file: BinaryIO, place: int, content: bytes) -> None:
    try:
        file.seek(place)
        file.write(content)
    except OSError as error:  # not to be taken for an error of the network
        raise RemoteError(
            f"{getattr(file, 'name', 'file')}: could not be written ({error.strerror or error})"
        ) from error


def _expected(url: str, read_again: bool) -> str | None:
    """Return the SHA-256 that a shard should have; ``None`` if its folder tells none."""
    folder = folder_of(url)
    if folder is None:
        return None
    if read_again:
        _sums.pop(folder, None)
    if folder not in _sums:
        _sums[folder] = _read_sums(f"{folder}/{SUMS_FILE}")
    return _sums[folder].get(name_of(url))


def _read_sums(url: str) -> dict[str, str]:
    content = io.BytesIO()
    try:
        _transfer(url, content, lambda size: None, Patience(url), is_verified=False)
    except RefusedError as error:
        logger.warning("%s; the shards in this folder are not verified", error)
        return {}
    try:
        return parse_sums(content.getvalue().decode(errors="replace"), url)
    except ValueError as error:
        raise RemoteError(str(error)) from error
