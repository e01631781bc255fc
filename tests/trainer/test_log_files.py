"""Training continues when log files cannot be written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import logging, sys
from tensorboardX import SummaryWriter
from mae_ast.trainer.fairseq_patches import log_files

logging.basicConfig(level=logging.INFO)
log_files.apply()
log_files.apply()
folder = sys.argv[1]
writer = SummaryWriter(folder + "/tblog")
handler = logging.FileHandler(folder + "/train.log")
logging.getLogger().addHandler(handler)
with open(folder + "/rest", "wb") as rest:
    rest.write(bytes(50_000))
for number in range(2_000):
    writer.add_scalar("loss", 1.0, number)
    logging.info("update %d", number)
writer.close()
print("continued")
"""


def test_full_disk_does_not_stop_training(small_disk: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(small_disk)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout == "continued\n"
    assert "Traceback" not in done.stderr
    assert done.stderr.count("TensorBoard") == 1
    assert "No space left on device" in done.stderr
