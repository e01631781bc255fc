"""A program that has trained ends well, whatever its batches' thread is at."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import torch
from fairseq.data.iterators import BufferedIterator
from mae_ast import fairseq_repairs

torch.set_num_threads(1)
fairseq_repairs.apply()


class Batches:
    def __len__(self):
        return 10**9

    def __iter__(self):
        x = torch.randn(700, 700)
        while True:
            y = x
            for _ in range({products}):
                y = x @ x
            yield y


batches = BufferedIterator(2, Batches())
next(batches)
"""


def test_a_thread_at_work_does_not_abort_the_program():
    """Within PyTorch, or waiting for room."""
    for products in (20, 0):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM.replace("{products}", str(products))],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
