"""Memory of a process, as the benchmarks and the records of runs state it."""

from __future__ import annotations

import subprocess
import sys

import pytest

PEAK = "from mae_ast.bench.machine import peak_memory; print(peak_memory())"
CHILD_OF_A_LARGE_PROCESS = f"""
import subprocess, sys
large = bytearray(b"x") * 1_500_000_000
subprocess.run([sys.executable, "-c", {PEAK!r}], check=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc of Linux")
def test_peak_memory_is_that_of_the_process_and_not_of_its_parent():
    command = [sys.executable, "-c", CHILD_OF_A_LARGE_PROCESS]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 0.05 < float(done.stdout) < 1.0
