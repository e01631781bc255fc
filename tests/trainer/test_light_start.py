"""A process that pretrains imports nothing that only metrics, plots or downloads need."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import ONLY_TRAINING, train_command

pytestmark = pytest.mark.slow

HEAVY = {
    *("sklearn", "scipy", "matplotlib", "PIL", "pandas", "timm", "transformers", "typer"),
    *("huggingface_hub", "pooch", "requests", "s3prl", "wandb"),
}
# fairseq itself imports these two for metrics of its own tasks, unless it is imported by `launch`.
OF_FAIRSEQ = {"sklearn", "scipy"}

REGISTER = "import mae_ast.plugin; mae_ast.plugin.register()"
LAUNCH = "import mae_ast.launch"
TRAIN = "import mae_ast.launch; mae_ast.launch.main()"
# fairseq's functions still work where a stand-in took the place of an import.
METRICS = f"""{LAUNCH}
from fairseq.criterions import sentence_prediction
from fairseq.tasks.audio_classification import sklearn_metrics
assert sentence_prediction.pearsonr([1, 2, 3], [2, 4, 6])[0] > 0.999
assert sentence_prediction.f1_score([1, 0, 1], [1, 0, 1]) == 1
assert sklearn_metrics.accuracy_score([1, 0], [1, 1]) == 0.5
"""


def heavy_imports(program: str, *arguments: str, folder: Path | None = None) -> set[str]:
    """Run a program in a new process and return the packages of ``HEAVY`` that it imports."""
    report = (
        "import json, sys; print('@' + json.dumps(sorted({m.split('.')[0] for m in sys.modules})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{program}\n{report}", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=folder,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    imported = set(json.loads(done.stdout.rpartition("@")[2]))
    assert {"torch", "fairseq"} <= imported
    return imported & HEAVY


def test_the_plugin_adds_no_heavy_imports_to_those_of_fairseq() -> None:
    assert heavy_imports(REGISTER) <= OF_FAIRSEQ


def test_the_launcher_has_no_heavy_imports() -> None:
    assert heavy_imports(LAUNCH) == set()


def test_metrics_of_fairseq_are_imported_when_they_are_called() -> None:
    assert heavy_imports(METRICS) == OF_FAIRSEQ


def test_pretraining_has_no_heavy_imports(corpus: Path, tmp_path: Path) -> None:
    run = (*ONLY_TRAINING, "optimization.max_update=1", "dataset.num_workers=0")
    _, *arguments = train_command(corpus, tmp_path / "out", *run)
    assert heavy_imports(TRAIN, *arguments, folder=tmp_path) == set()
    assert (tmp_path / "out" / "hydra_train.log").read_text().count("[train_inner]") == 1
