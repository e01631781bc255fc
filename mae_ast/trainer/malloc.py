"""Keep memory freed by CPU tensors in the process, so that the next step reuses it."""

from __future__ import annotations

import ctypes

# Constants of glibc's malloc.h, and the largest threshold that it accepts.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_LARGEST_MMAP_THRESHOLD = 32 * 2**20
_NEVER = 2**31 - 1
_PAD = 64 * 2**20


def keep_freed_memory() -> bool:
    """Configure glibc's malloc to keep freed blocks instead of returning them to the system.

    By default glibc returns large blocks at once, and the kernel zeroes their pages on the next
    allocation: 1 GB per step of a 12-layer model, a tenth of the time of a bfloat16 step. Blocks
    above 32 MiB are still returned. The resident memory stays at its maximum.

    Returns:
        ``False`` if the C library does not support it.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return False
    return all(
        mallopt(ctypes.c_int(parameter), ctypes.c_int(value))
        for parameter, value in (
            (_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD),
            (_M_TRIM_THRESHOLD, _NEVER),
            (_M_TOP_PAD, _PAD),
        )
    )
