"""Files and folders that an earlier version wrote are read, resumed and completed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from . import measure, trainings, workspace
from .compare import differences
from .make import HEADER_BYTES, NUMBERS

BOUND = 1e-5
PRINTED = 1.01e-4  # of values with four decimals: the last one may round to either side
MAX_BYTES = 3_000_000
STORED = json.loads(NUMBERS.read_text())


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copies of the stored files, which no test changes."""
    return workspace.fill(tmp_path_factory.mktemp("stored"))


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The stored runs resumed, and one from the stored pack."""
    return measure.resume(workspace.fill(tmp_path_factory.mktemp("resumed")))


def test_everything_is_small() -> None:
    sizes = [path.stat().st_size for path in (NUMBERS, *workspace.FILES.rglob("*"))]
    assert sum(sizes) < MAX_BYTES


def test_no_stored_file_names_a_folder_of_a_machine() -> None:
    pattern = re.compile(rb"/(tmp|work|home|root|Users|mnt|var)/")
    for path in workspace.FILES.rglob("*"):
        if path.is_file():
            assert not pattern.search(path.read_bytes()), path


@pytest.mark.parametrize("name", measure.MODELS)
def test_hidden_states(root: Path, name: str) -> None:
    found = measure.hidden_states(str(root / name))
    assert not list(differences(found, STORED["hidden_states"][name], BOUND))


def test_a_cached_download_is_used(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAE_AST_CACHE", str(root / "cache"))
    found = measure.hidden_states(workspace.URL)
    assert not list(differences(found, STORED["hidden_states"]["released/mae_ast.pt"], BOUND))


@pytest.mark.parametrize("system", trainings.FINETUNED)
def test_predictions(root: Path, system: str) -> None:
    found = measure.predictions(root, system)
    assert sum(found.values()) == pytest.approx(1, abs=3e-4)
    assert not list(differences(found, STORED["predictions"][system], 0, PRINTED))


def test_evaluation(root: Path) -> None:
    found = measure.evaluation(root, "ast")
    assert not list(differences(found, STORED["evaluation"], 0, PRINTED))


@pytest.mark.parametrize("system", measure.RESUMED)
def test_pretraining_resumes_within_an_epoch(resumed: dict[str, Any], system: str) -> None:
    found = resumed[f"resume_{system}"]
    begin, end = trainings.PRETRAINING_STOP, trainings.PRETRAINING_UPDATES
    assert found["update"] == list(range(begin + 1, end + 1))
    assert not list(differences(found, STORED["resumed"][f"resume_{system}"], BOUND))


def test_finetuning_resumes_within_an_epoch(resumed: dict[str, Any]) -> None:
    found = resumed["resume_finetuning"]
    begin, end = trainings.FINETUNING_STOP, trainings.FINETUNING_UPDATES
    assert found["update"] == list(range(begin + 1, end + 1))
    assert not list(differences(found, STORED["resumed"]["resume_finetuning"], BOUND))


def test_pretraining_from_a_pack_is_that_from_loose_files(resumed: dict[str, Any]) -> None:
    found = resumed["pretrain_from_pack"]
    assert not list(differences(found, STORED["resumed"]["pretrain_from_pack"], BOUND))
    loose = STORED["trainings"]["pretrain_mae_ast"]
    for key in ("loss", "gnorm"):
        assert found[key] == pytest.approx(loose[key][:3], rel=BOUND)


def test_a_pack_is_verified_and_known_to_be_complete(root: Path) -> None:
    pack = root / "pack"
    before = {path: path.stat().st_mtime_ns for path in pack.glob("train-*.tar")}
    assert len(before) == 3
    assert "12 clips verified" in workspace.mae_ast("pack", pack / "train.tsv", "--verify")
    command = ("pack", root / "data" / "train.tsv", pack, "--shard-size", "100K", "--transcode")
    assert "12 clips in 3 shards" in workspace.mae_ast(*command, "--verify")
    assert {path: path.stat().st_mtime_ns for path in pack.glob("train-*.tar")} == before


def test_sample_rates_are_cached(root: Path) -> None:
    cache = root / "data" / "valid.tsv.rates.npz"
    before = cache.stat().st_mtime_ns
    workspace.mae_ast("pack", root / "data" / "valid.tsv", root / "pack_valid")
    assert cache.stat().st_mtime_ns == before


def test_an_extraction_that_is_half_done_is_completed(root: Path) -> None:
    folder = root / "features"
    begun = (folder / "train_0_1.npy.part").read_bytes()
    found = measure.extracted(root)
    assert not list(differences(found, STORED["extracted"], BOUND))
    done = np.load(folder / "train_0_1.npy").tobytes()
    assert done.startswith(begun[HEADER_BYTES:])
    assert len(done) > 2 * len(begun)
