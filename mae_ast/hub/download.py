"""Files from the web in a cache: ``download(urls, name) -> Path``.

A file keeps its checksum beside it, in ``<name>.sha256``: the one that was given, or else the one
that the first download had. Once there, it is used without any access to the network.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pooch
from filelock import FileLock, Timeout

from mae_ast.hub.http import MirrorDownloader
from mae_ast.hub.partial_file import DownloadError

__all__ = ["DownloadError", "cache_folder", "download", "name_from_url"]

CACHE_VARIABLE = "MAE_AST_CACHE"
PATIENCE = 5.0  # s of waiting for another process before a word about it
MAX_NAME = 100  # characters

logger = logging.getLogger(__name__)
pooch.get_logger().setLevel(logging.WARNING)  # it tells of every fetch


def cache_folder() -> Path:
    """Where downloads are kept: ``MAE_AST_CACHE``, else the user's cache folder."""
    chosen = os.environ.get(CACHE_VARIABLE)
    return Path(chosen).expanduser() if chosen else pooch.os_cache("mae-ast")


def name_from_url(url: str) -> str:
    """A name for the cache: that of the file, with a hash of the whole address in it.

    Raises:
        ValueError: it is no http address.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url}: no address of the kind https://host/path/file")
    last = unquote(parts.path).rpartition("/")[2]
    safe = Path(re.sub(r"[^A-Za-z0-9._-]", "_", last).lstrip(".")[-MAX_NAME:] or "file")
    return f"{safe.stem}-{hashlib.sha256(url.encode()).hexdigest()[:12]}{safe.suffix}"


def download(
    urls: Sequence[str], name: str, sha256: str | None = None, folder: Path | None = None
) -> Path:
    """The path of a file, downloaded if it is not there.

    Of several processes one downloads, and the others wait for it.

    Args:
        urls: where the file lies, in the order in which they are tried.
        name: what it is called in the folder.
        sha256: its checksum in hexadecimal digits. Without it that of the first download counts.
        folder: where it is kept; default: :func:`cache_folder`.

    Raises:
        ValueError: ``sha256`` is no checksum.
        DownloadError: no mirror gave the file, or not the right one, or it cannot be written.
    """
    if sha256 is not None and not _is_sum(sha256 := sha256.strip().lower()):
        raise ValueError(f"sha256 {sha256!r}: 64 hexadecimal digits are wanted")
    target = (folder or cache_folder()).absolute() / name
    try:
        if not _is_there(target, sha256):
            target.parent.mkdir(parents=True, exist_ok=True)
            with _alone(target):
                if not _is_there(target, sha256):
                    _fetch(urls, target, sha256)
    except DownloadError:
        raise
    except OSError as error:
        raise DownloadError(f"{target}: cannot be written or read ({error.strerror})") from error
    return target


def _is_there(target: Path, given: str | None) -> bool:
    """Whether the file is there and right; it may lie in a folder that cannot be written to."""
    try:
        actual = pooch.file_hash(str(target))
    except FileNotFoundError:
        return False
    recorded = _recorded(target)
    if actual != (given or recorded or actual):
        return False
    if actual != recorded:
        with suppress(OSError):
            _record(target, actual)
    return True


def _fetch(urls: Sequence[str], target: Path, given: str | None) -> None:
    recorded = _recorded(target)
    expected, advice = given or recorded, ""
    if given is None:
        # What is there is not what was recorded. It must not be taken for good if its record goes.
        target.unlink(missing_ok=True)
        advice = f"; delete {_record_path(target)} to accept the new file"
    downloader = MirrorDownloader(urls, target, expected, advice)
    name = target.name
    files = pooch.create(
        target.parent, base_url="", registry={name: expected}, urls={name: urls[0]}
    )
    files.fetch(name, downloader=downloader)
    assert downloader.sha256 is not None
    _record(target, downloader.sha256)


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Wait until no other process downloads this file, and keep others waiting."""
    lock = FileLock(target.with_name(f"{target.name}.lock"))
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout:
        logger.warning("waiting for another process that downloads %s", target)
        lock.acquire()
    try:
        yield
    finally:
        # Whoever waits for the lock of a file that is gone is told so by filelock, and tries anew.
        with suppress(OSError):
            Path(lock.lock_file).unlink()
        lock.release()


def _record_path(target: Path) -> Path:
    return target.with_name(f"{target.name}.sha256")


def _recorded(target: Path) -> str | None:
    """The checksum in ``<name>.sha256``, as ``sha256sum`` writes it."""
    path = _record_path(target)
    try:
        words = path.read_text(errors="replace").lower().split()
    except FileNotFoundError:
        return None
    if not words or not _is_sum(words[0]):
        raise DownloadError(f"{path}: holds no checksum as sha256sum writes it; delete it")
    return words[0]


def _record(target: Path, sha256: str) -> None:
    path = _record_path(target)
    written = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        written.write_text(f"{sha256}  {target.name}\n")
        written.replace(path)
    finally:
        written.unlink(missing_ok=True)


def _is_sum(text: str) -> bool:
    return re.fullmatch("[0-9a-f]{64}", text) is not None
