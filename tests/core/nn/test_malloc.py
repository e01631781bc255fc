"""Freed memory stays with the process and is reused."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, resource, sys
from mae_ast.core.nn.malloc import keep_freed_memory
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
if len(sys.argv) > 1:
    assert keep_freed_memory()
size = 8 * 2**20
def step():
    blocks = [libc.malloc(size) for _ in range(16)]
    for block in blocks:
        libc.memset(block, 1, size)
    for block in blocks:
        libc.free(block)
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_reused_blocks_cause_no_page_faults():
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("needs glibc")
    found = [
        int(subprocess.check_output([sys.executable, "-c", PROGRAM, *arguments], text=True))
        for arguments in ([], ["keep"])
    ]
    without, kept = found
    pages = 3 * 16 * 2_048
    assert without > 0.5 * pages, found
    assert kept < 0.01 * pages, found
