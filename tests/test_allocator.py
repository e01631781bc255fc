"""Freed memory is used again, instead of being asked for anew."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, resource, sys
import torch
if len(sys.argv) > 1:
    from mae_ast.allocator import keep_freed_memory
    assert keep_freed_memory()
def step():
    blocks = [torch.ones(2 * 2**20) for _ in range(16)]  # of 8 MiB
for _ in range(5):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_pages_are_not_faulted_in_again():
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("needs glibc")
    found = [
        int(subprocess.check_output([sys.executable, "-c", PROGRAM, *arguments], text=True))
        for arguments in ([], ["keep"])
    ]
    without, kept = found
    assert kept < 0.05 * without, found
