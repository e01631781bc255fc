"""A process that pretrains imports nothing that only metrics, plots or downloads need."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
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
TRAIN = "import mae_ast.launch; mae_ast.launch.main()"
# fairseq's functions still work where a stand-in took the place of an import.
METRICS = """
from fairseq.criterions import sentence_prediction
from fairseq.tasks.audio_classification import sklearn_metrics
assert sentence_prediction.pearsonr([1, 2, 3], [2, 4, 6])[0] > 0.999
assert sentence_prediction.f1_score([1, 0, 1], [1, 0, 1]) == 1
assert sklearn_metrics.accuracy_score([1, 0], [1, 1]) == 0.5
"""
REPORT = "import json, sys; print('@', json.dumps(sorted({m.split('.')[0] for m in sys.modules})))"


def heavy_imports(*parts: str, arguments: Sequence[str] = (), folder: Path) -> list[set[str]]:
    """Run the parts of a program in a new process, and return what each of them imports.

    Returns:
        The packages of ``HEAVY`` that are imported after each part.
    """
    program = "\n".join(f"{part}\n{REPORT}" for part in parts)
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=folder,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("@")]
    imported = [set(json.loads(line.removeprefix("@"))) for line in lines]
    assert len(imported) == len(parts)
    assert {"torch", "fairseq"} <= imported[0]
    return [names & HEAVY for names in imported]


def test_the_plugin_adds_no_heavy_imports_to_those_of_fairseq(tmp_path: Path) -> None:
    (imported,) = heavy_imports(REGISTER, folder=tmp_path)
    assert imported <= OF_FAIRSEQ


def test_pretraining_imports_metrics_of_fairseq_when_they_are_called(
    corpus: Path, tmp_path: Path
) -> None:
    run = (*ONLY_TRAINING, "optimization.max_update=1", "dataset.num_workers=0")
    _, *arguments = train_command(corpus, tmp_path / "out", *run)
    trained, called = heavy_imports(TRAIN, METRICS, arguments=arguments, folder=tmp_path)
    assert trained == set()
    assert called == OF_FAIRSEQ
    assert (tmp_path / "out" / "hydra_train.log").read_text().count("[train_inner]") == 1
