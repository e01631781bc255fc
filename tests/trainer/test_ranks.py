"""Messages between the ranks of a training."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import DEADLINE_S
from .ranks import free_port, last_lines

# Rank 0 fails; rank 1 reads its message later.
FAIL = """
import sys, time
from torch import distributed
from mae_ast.trainer import ranks

rank, port, kind = int(sys.argv[1]), sys.argv[2], sys.argv[3]

def compute():
    if rank == 0:
        raise ValueError("no such manifest")
    return b"fine"

distributed.init_process_group("gloo", f"tcp://localhost:{port}", rank=rank, world_size=2)
time.sleep(rank)
try:
    if kind == "from_first":
        ranks.from_first("key", compute)
    else:
        ranks.agree("key", "clips", compute)
except ValueError as error:
    sys.exit(f"{rank}: {error}")
"""


@pytest.mark.parametrize(
    ("function", "prefix"), [("from_first", "1: "), ("agree", "1: rank 0 failed: ")]
)
def test_failed_rank_0_waits_until_all_ranks_have_its_message(
    tmp_path: Path, function: str, prefix: str
) -> None:
    first, other = last_lines(FAIL, tmp_path, [function], [function])
    assert first == "0: no such manifest"
    assert other == f"{prefix}no such manifest"


# Rank 1 is late for a collective, later than the limit that the group began with.
WAIT = """
import sys, time
from datetime import timedelta
import torch
from torch import distributed
from mae_ast.trainer import ranks

rank, port = int(sys.argv[1]), sys.argv[2]
distributed.init_process_group(
    "gloo", f"tcp://localhost:{port}", rank=rank, world_size=2, timeout=timedelta(seconds=30)
)
group = distributed.new_group(timeout=timedelta(seconds=1))
value = torch.ones(1)
distributed.all_reduce(value, group=group)
ranks.allow_waits(60)
if rank == 1:
    time.sleep(2.5)
distributed.all_reduce(value, group=group)
print(value.item())
"""


@pytest.mark.slow
def test_ranks_wait_for_each_other_as_long_as_allowed() -> None:
    port = str(free_port())
    command = [sys.executable, "-c", WAIT]
    processes = [
        subprocess.Popen([*command, str(rank), port], stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    said = [process.communicate(timeout=DEADLINE_S)[0] for process in processes]
    assert said == ["4.0\n", "4.0\n"]
