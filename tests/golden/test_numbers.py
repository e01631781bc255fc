"""Trainings and mask draws give the stored numbers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from . import measure, trainings, workspace
from .compare import differences
from .make import NUMBERS

# Float32 rounds alike to 1e-6 over these few updates, whatever the CPU's instructions.
BOUND = 1e-5
STORED = json.loads(NUMBERS.read_text())
JOBS = (
    *(f"pretrain_{system}" for system in trainings.PRETRAINED),
    *(f"finetune_{system}" for system in trainings.FINETUNED),
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return measure.train(workspace.fill(tmp_path_factory.mktemp("golden")))


@pytest.mark.parametrize("job", JOBS)
def test_losses_and_gradient_norms(trained: dict[str, Any], job: str) -> None:
    number = {"pretrain": 20, "finetune": 10}[job.partition("_")[0]]
    assert len(trained[job]["loss"]) == number
    assert not list(differences(trained[job], STORED["trainings"][job], BOUND))


def test_nothing_else_is_stored() -> None:
    assert sorted(STORED["trainings"]) == sorted(JOBS)


def test_mask_draws() -> None:
    assert measure.strategies() == STORED["masks"]
