"""Addresses of remote shards: ``https://``, ``http://``, ``s3://``, ``gs://`` and ``hf://``."""

from __future__ import annotations

import os
import re

# Scheme to the module that reads it, and pip's name of what has to be installed.
SCHEMES = {
    "https": ("aiohttp", "'mae-ast[remote]'"),
    "http": ("aiohttp", "'mae-ast[remote]'"),
    "s3": ("s3fs", "s3fs"),
    "gs": ("gcsfs", "gcsfs"),
    "hf": ("huggingface_hub", "huggingface_hub"),
}
_URL = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)


class RemoteError(ValueError):
    """A remote shard cannot be had; the message gives its URL, the reason and the remedy.

    This says nothing about the clips in it, so it ends a run instead of counting as a bad file.
    """


def is_url(path: str) -> bool:
    """Return whether a path is the URL of a supported scheme."""
    match = _URL.match(path)
    return match is not None and match[1].lower() in SCHEMES


def unsupported_scheme(path: str) -> str:
    """Return the scheme of a URL that is not supported, such as ``ftp``; '' for other paths."""
    match = _URL.match(path)
    return match[1] if match is not None and match[1].lower() not in SCHEMES else ""


def scheme_of(url: str) -> str:
    """Return the scheme of a URL in lower case."""
    return url.partition("://")[0].lower()


def server_of(url: str) -> str:
    """Return the scheme and the host, or the bucket, of a URL."""
    scheme, _, rest = url.partition("://")
    return f"{scheme.lower()}://{rest.partition('/')[0]}"


def name_of(url: str) -> str:
    """Return the file name in a URL, without its query."""
    return url.partition("?")[0].rpartition("/")[2]


def folder_of(url: str) -> str | None:
    """Return the URL of the folder of a file; ``None`` if a query belongs to this file alone."""
    return None if "?" in url else url.rpartition("/")[0]


def join(root: str, path: str) -> str:
    """Join a path to a root; either may be a URL, of which a path may have any scheme."""
    if _URL.match(path):
        return path
    return f"{root}/{path}" if is_url(root) else os.path.join(root, path)
