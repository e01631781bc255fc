"""Memory that tensors on the CPU free stays with the process, for the next step to use."""

from __future__ import annotations

import ctypes

# Numbers of glibc's malloc.h, and the largest threshold that it takes.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_LARGEST_MMAP_THRESHOLD = 32 * 2**20
_NEVER = 2**31 - 1
_PAD = 64 * 2**20


def keep_freed_memory() -> bool:
    """Tell the C library not to give freed blocks back to the system; they are asked for again.

    glibc returns large blocks at once, and the kernel clears each page of them anew: a gigabyte in
    each step of a 12-layer model, a tenth of the step in bfloat16. Blocks above 32 MiB still go
    back. The process keeps what it needed most.

    Returns:
        Whether this C library can be told.
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
