"""Retry reads that failed with a transient error, for example on a network file system."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from functools import wraps
from typing import ParamSpec, TypeVar

import av
import soundfile

from mae_ast.core.io.archive import close_archives
from mae_ast.core.io.remote.urls import RemoteError

WAITS_S = (0.1, 0.4)  # before the second and the third attempt

# Permanent errors such as ENOENT, EACCES and EISDIR are not retried.
_TRANSIENT = frozenset(
    {
        *(errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EBUSY, errno.EINTR),
        *(errno.ECONNRESET, errno.ECONNABORTED, errno.ECONNREFUSED, errno.ENOTCONN),
        *(errno.ENETDOWN, errno.ENETUNREACH, errno.ENETRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH),
        *(
            errno.EMFILE,
            errno.ENFILE,
            errno.EREMOTEIO if hasattr(errno, "EREMOTEIO") else errno.EIO,
        ),
    }
)
_SYSTEM_ERROR = 2  # libsndfile's code for any system error; it does not report errno

P = ParamSpec("P")
R = TypeVar("R")


def retried(read: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function that reads a file: retry it up to twice after a transient error."""

    @wraps(read)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        for wait_s in WAITS_S:
            try:
                return read(*args, **kwargs)
            except Exception as error:
                if not is_transient(error):
                    raise
            time.sleep(wait_s)
            close_archives()  # a stale file handle stays stale until reopened
        return read(*args, **kwargs)

    return wrapper


def is_transient(error: BaseException) -> bool:
    """Return whether an error, or any error in its chain of causes, is transient."""
    if isinstance(error, RemoteError):  # was retried for long enough
        return False
    return any(
        (
            isinstance(each, OSError)
            and each.errno in _TRANSIENT
            and not isinstance(each, av.FFmpegError)  # means damage; FFmpeg does not read the files
        )
        or (isinstance(each, soundfile.LibsndfileError) and each.code == _SYSTEM_ERROR)
        for each in _causes(error)
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        yield each
        each = each.__cause__ or each.__context__
