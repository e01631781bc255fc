"""Download files to a cache: ``download(urls, name) -> Path``.

The SHA-256 of a file is stored in ``<name>.sha256``: the one given by the caller, else that of the
first download. Cached files are used without network access. They are hashed again only if their
size or modification time differs from those in ``<name>.verified``.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pooch
from filelock import FileLock, Timeout

from mae_ast.core.io.atomic import atomic_write
from mae_ast.hub.http import MirrorDownloader
from mae_ast.hub.partial_file import DownloadError

__all__ = ["DownloadError", "cache_folder", "download", "name_from_url"]

CACHE_VARIABLE = "MAE_AST_CACHE"
PATIENCE = 5.0  # s to wait for another process before logging it
MAX_NAME = 100  # characters
RECORD, NOTE = ".sha256", ".verified"  # suffixes of the files beside a download
CLOCK_TICK_NS = 50_000_000  # more than a tick of the clock that file systems use

logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Return the folder of downloads: ``MAE_AST_CACHE``, else the user's cache folder."""
    chosen = os.environ.get(CACHE_VARIABLE)
    return Path(chosen).expanduser() if chosen else pooch.os_cache("mae-ast")


def name_from_url(url: str) -> str:
    """Return a file name for the cache: the name in the URL with a hash of the URL.

    Raises:
        ValueError: not an http or https URL.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url}: not a URL of the form https://host/path/file")
    last = unquote(parts.path).rpartition("/")[2]
    safe = Path(re.sub(r"[^A-Za-z0-9._-]", "_", last).lstrip(".")[-MAX_NAME:] or "file")
    return f"{safe.stem}-{hashlib.sha256(url.encode()).hexdigest()[:12]}{safe.suffix}"


def download(
    urls: Sequence[str],
    name: str,
    sha256: str | None = None,
    folder: Path | None = None,
    verify: bool = False,
) -> Path:
    """Return the path of a cached file, which is downloaded if necessary.

    If several processes need the same file, one downloads it and the others wait.

    Args:
        urls: URLs of the file, tried in this order.
        name: file name in the folder.
        sha256: expected SHA-256 in hexadecimal digits; default: that of the first download.
        folder: folder of the file; default: :func:`cache_folder`.
        verify: hash a cached file even if its size and modification time are unchanged.

    Raises:
        ValueError: ``sha256`` is not a SHA-256.
        DownloadError: no mirror returned the file with the expected SHA-256, or it cannot be
            written.
    """
    if sha256 is not None and not _is_sha256(sha256 := sha256.strip().lower()):
        raise ValueError(f"sha256 {sha256!r}: expected 64 hexadecimal digits")
    target = (folder or cache_folder()).absolute() / name
    try:
        if not _is_cached(target, sha256, verify):
            target.parent.mkdir(parents=True, exist_ok=True)
            with _download_lock(target):
                if not _is_cached(target, sha256, verify):
                    _fetch(urls, target, sha256)
    except DownloadError:
        raise
    except OSError as error:
        raise DownloadError(
            f"{target}: cannot be written or read ({error.strerror or error})"
        ) from error
    return target


def _is_cached(target: Path, given: str | None, verify: bool) -> bool:
    """Return whether the file exists with the expected SHA-256; the folder may be read-only."""
    if not target.exists():
        return False
    recorded = _recorded(target)
    expected = given or recorded
    if expected == recorded and not verify and _is_unchanged(target, recorded):
        return True
    actual: str = pooch.file_hash(str(target))
    if actual != (expected or actual):
        return False
    with suppress(OSError):
        _record(target, actual)
    return True


def _fetch(urls: Sequence[str], target: Path, given: str | None) -> None:
    expected, advice = given or _recorded(target), ""
    if given is None:
        # The file differs from its recorded SHA-256; it must not be accepted if that is deleted.
        target.unlink(missing_ok=True)
        advice = f"; delete {_beside(target, RECORD)} to accept the new file"
    _record(target, MirrorDownloader(urls, target, expected, advice).download())


@contextmanager
def _download_lock(target: Path) -> Iterator[None]:
    """Hold the lock for downloading a file, so that other processes wait."""
    lock = FileLock(target.with_name(f"{target.name}.lock"))
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout:
        logger.warning("waiting for another process to download %s", target)
        lock.acquire()
    try:
        yield
    finally:
        # A process waiting for the lock is told by filelock that the file is gone, and retries.
        with suppress(OSError):
            Path(lock.lock_file).unlink()
        lock.release()


def _recorded(target: Path) -> str | None:
    """Read the checksum in ``<name>.sha256``, which has the format of ``sha256sum``."""
    path = _beside(target, RECORD)
    try:
        fields = path.read_text(errors="replace").lower().split()
    except FileNotFoundError:
        return None
    if not fields or not _is_sha256(fields[0]):
        raise DownloadError(f"{path}: not in the format of sha256sum; delete it")
    return fields[0]


def _record(target: Path, sha256: str) -> None:
    """Record the SHA-256 that the file has now, with its size and modification time."""
    note = {**_identity(target, sha256), "checked_ns": time.time_ns()}
    for suffix, text in ((RECORD, f"{sha256}  {target.name}\n"), (NOTE, json.dumps(note) + "\n")):
        with atomic_write(_beside(target, suffix)) as part:
            part.write_text(text)


def _is_unchanged(target: Path, sha256: str | None) -> bool:
    """Return whether size and modification time are as when the file had this SHA-256.

    A file that was checked right after it was modified may have changed within the same tick of the
    file system's clock; it is checked once more.
    """
    with suppress(OSError, ValueError, KeyError, TypeError):
        note = json.loads(_beside(target, NOTE).read_text())
        has_settled = note.pop("checked_ns") - note["mtime_ns"] > CLOCK_TICK_NS
        return bool(has_settled and note == _identity(target, sha256))
    return False


def _identity(target: Path, sha256: str | None) -> dict[str, Any]:
    status = target.stat()
    return {"sha256": sha256, "size": status.st_size, "mtime_ns": status.st_mtime_ns}


def _beside(target: Path, suffix: str) -> Path:
    return target.with_name(f"{target.name}{suffix}")


def _is_sha256(text: str) -> bool:
    return re.fullmatch("[0-9a-f]{64}", text) is not None
