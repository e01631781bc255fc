"""``python -m tests.trainer.forked_ranks``: the launcher, which forks the ranks of a run on a CPU.

It spawns them otherwise, and each imports PyTorch and fairseq again and composes the settings,
which takes seconds. The ranks do not handle signals.
"""

from __future__ import annotations

from functools import partial

import torch.multiprocessing

from mae_ast.launch import main

if __name__ == "__main__":
    start = torch.multiprocessing.start_processes
    torch.multiprocessing.spawn = partial(start, start_method="fork")  # type: ignore[assignment]
    main()
