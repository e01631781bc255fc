"""Local cache of remote shards, shared by all processes of a machine.

Environment variables:

    MAE_AST_SHARD_CACHE      folder; default: ``shards`` in the folder of downloads
    MAE_AST_SHARD_CACHE_GB   maximum size in GB (10^9 bytes); default 32

The folder holds whole shards, named by a hash of their URL. The least recently opened ones are
removed when another one needs their room. Whoever reads one at that time has it open, and so keeps
its content. A shard is fetched by one process, under a lock; the others wait. It appears under its
name when it is complete and verified. A shard on its way takes up its full size from the start, so
that the limit also holds while several processes fetch.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from contextlib import suppress
from pathlib import Path

from mae_ast.core.io.atomic import atomic_write, try_lock, wait_for_lock
from mae_ast.core.io.remote.fetch import fetch
from mae_ast.core.io.remote.patience import number_from
from mae_ast.core.io.remote.urls import RemoteError, name_of

FOLDER_VARIABLE, SIZE_VARIABLE = "MAE_AST_SHARD_CACHE", "MAE_AST_SHARD_CACHE_GB"
DOWNLOADS_VARIABLE = "MAE_AST_CACHE"
DEFAULT_GB = 32.0
GB = 10**9
POLL_S = 0.05

_MAX_NAME = 80  # characters
_PART = re.compile(r"\.(.+)\.\d+\.[0-9a-f]+\.part")  # as atomic_write names it


def cache_folder() -> Path:
    """Return the folder of the cache."""
    if chosen := os.environ.get(FOLDER_VARIABLE):
        return Path(chosen).expanduser()
    if downloads := os.environ.get(DOWNLOADS_VARIABLE):
        return Path(downloads).expanduser() / "shards"
    import pooch  # takes time, and is not needed elsewhere in the core

    return Path(pooch.os_cache("mae-ast")) / "shards"


def cache_bytes() -> int:
    """Return the maximum size of the cache.

    Raises:
        RemoteError: ``MAE_AST_SHARD_CACHE_GB`` is not a number from 0.
    """
    return round(number_from(SIZE_VARIABLE, DEFAULT_GB, "GB") * GB)


def cached_path(url: str) -> Path:
    """Return the path of a shard in the cache, whether it is there or not."""
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", name_of(url)).lstrip(".")[-_MAX_NAME:] or "shard"
    return cache_folder() / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{safe}"


def open_shard(url: str) -> int:
    """Return a file descriptor of a shard, which is fetched if it is not in the cache.

    Raises:
        RemoteError: the shard cannot be fetched, or the cache cannot be written.
    """
    path = cached_path(url)
    while True:
        with suppress(FileNotFoundError):  # also if it was removed a moment ago
            shard = os.open(path, os.O_RDONLY)
            with suppress(OSError):  # a cache of someone else
                os.utime(path)
            return shard
        ensure(url)


def ensure(url: str, wait: bool = True) -> None:
    """Fetch a shard unless it is in the cache.

    Args:
        url: URL of the shard.
        wait: if another process is fetching it, wait until it is there; else return at once.

    Raises:
        RemoteError: see :func:`open_shard`.
    """
    path, began, has_waited = cached_path(url), time.monotonic(), False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while not path.exists():
            with try_lock(path) as is_held:
                if is_held and not path.exists():
                    # Whoever fetched it before has failed, and has waited for the server.
                    _fetch(url, path, began if has_waited else None)
            if not is_held:
                if not wait:
                    return
                has_waited = True
                time.sleep(POLL_S)
    except OSError as error:
        raise RemoteError(
            f"{path.parent}: the cache of shards cannot be used ({error.strerror or error}); "
            f"{FOLDER_VARIABLE} sets another folder"
        ) from error


def _fetch(url: str, path: Path, since: float | None) -> None:
    with atomic_write(path) as part, part.open("r+b") as file:
        fetch(url, file, lambda size: _reserve(url, part, size), since)
        _make_room(part)  # if the server did not tell the size
        os.fsync(file.fileno())  # complete on disk before it is renamed


def _reserve(url: str, part: Path, size: int) -> None:
    """Make room for a shard, and let it take up its whole size; wait while others are fetched.

    Raises:
        RemoteError: the shard is larger than the cache.
    """
    if size > cache_bytes():
        raise RemoteError(
            f"{url}: has {size} bytes, more than the whole cache of shards; raise {SIZE_VARIABLE} "
            f"to at least {size / GB:.3g}"
        )
    while not _make_room(part, size):
        time.sleep(POLL_S)


def _make_room(part: Path, size: int | None = None) -> bool:
    """Remove the least recently opened shards until the cache is within its limit.

    Args:
        part: the shard on its way.
        size: its size, which it then takes up; ``None``: the one that it has.

    Returns:
        ``False`` if other shards on their way leave no room.
    """
    with wait_for_lock(part.parent / "cache", POLL_S / 10):
        size = part.stat().st_size if size is None else size
        shards = []
        room = cache_bytes() - size
        own_name = _name_of_part(part)
        for path in part.parent.iterdir():
            with suppress(FileNotFoundError):
                status = path.stat()
                name = _name_of_part(path)
                if path == part:
                    continue
                if name is not None and (name == own_name or _is_abandoned(path, name)):
                    path.unlink()
                else:
                    room -= status.st_size
                    if not path.name.startswith("."):
                        shards.append((status.st_mtime_ns, status.st_size, path))
        for _, num_bytes, path in sorted(shards):
            if room >= 0:
                break
            path.unlink(missing_ok=True)
            room += num_bytes
        if room >= 0:
            os.truncate(part, size)
    return room >= 0


def _name_of_part(path: Path) -> str | None:
    match = _PART.fullmatch(path.name)
    return None if match is None else match[1]


def _is_abandoned(part: Path, name: str) -> bool:
    """Return whether the process that fetched a shard has ended before it was complete."""
    with try_lock(part.with_name(name)) as is_held:
        return is_held
