"""``python -m mae_ast.bench.synthetic``: run training without the cost of loading data.

The first batch of each size is read from files and then reused.
"""

from __future__ import annotations

import runpy
from collections.abc import Sequence
from typing import Any

import torch

from mae_ast.data.pretraining_dataset import PretrainingDataset


def reuse_first_batch() -> None:
    """Patch the pretraining data set to return its first batch of each size again."""
    read, collate = PretrainingDataset.__getitem__, PretrainingDataset.collater
    made: dict[int, dict[str, Any]] = {}

    def getitem(self: PretrainingDataset, index: int) -> int:
        return index

    def collater(self: PretrainingDataset, samples: Sequence[int]) -> dict[str, Any]:
        if len(samples) not in made:
            sample = collate(self, [read(self, index) for index in samples])
            made[len(samples)] = _pinned(sample) if torch.cuda.is_available() else sample
        sample = made[len(samples)]
        return {**sample, "net_input": dict(sample["net_input"])}

    for name, method in (("__getitem__", getitem), ("collater", collater)):
        setattr(PretrainingDataset, name, method)


def _pinned(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _pinned(each) for key, each in value.items()}
    if isinstance(value, tuple):
        return tuple(_pinned(each) for each in value)
    return value.pin_memory() if isinstance(value, torch.Tensor) else value


if __name__ == "__main__":
    reuse_first_batch()
    runpy.run_module("mae_ast.launch", run_name="__main__")
