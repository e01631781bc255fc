"""Recipes for evidence: the corpus of real recordings, and the reference run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mae_ast.bench.machine import commit
from mae_ast.core.io.manifest import Manifest
from mae_ast.core.io.settings_note import file_digest
from mae_ast.study.data import find_data

from .test_recipes import run, start

needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg")
SAMPLES = (
    *(f"drum_{number}.flac" for number in range(4)),
    *(f"tabla_{number}.flac" for number in range(4)),
    "sn_dub.flac",
)


def package(folder: Path, name: str, files: dict[str, str]) -> None:
    """Build ``NAME_1_all.deb`` with tones of 0.3 s, by path and format."""
    root = folder / name
    (root / "DEBIAN").mkdir(parents=True)
    control = f"Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: x\nDescription: x\n"
    (root / "DEBIAN" / "control").write_text(control)
    notice = root / "usr" / "share" / "doc" / name / "copyright"
    notice.parent.mkdir(parents=True)
    notice.write_text(f"License of {name}\n")
    for number, (path, form) in enumerate(files.items()):
        file = root / "usr" / "share" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        wave = 0.3 * np.sin(np.arange(13_230) * 0.05 * (1 + number))
        soundfile.write(file, wave, 44_100, format=form)
    target = folder / f"{name}_1_all.deb"
    subprocess.run(["dpkg-deb", "--build", str(root), str(target)], check=True, capture_output=True)


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with two small packages of the same layout as the real ones."""
    folder = tmp_path_factory.mktemp("my packages")
    letters = {f"klettres/{lang}/alpha/a-{n}.ogg": "OGG" for lang in ("de", "fr") for n in range(3)}
    syllables = {
        f"klettres/{lang}/syllab/ab-{n}.ogg": "OGG" for lang in ("de", "fr") for n in range(5)
    }
    only_letters = {"klettres/nb/alpha/a-0.ogg": "OGG"}
    package(folder, "klettres-data", letters | syllables | only_letters)
    samples = {f"sonic-pi/samples/{name}": "FLAC" for name in SAMPLES}
    package(folder, "sonic-pi-samples", samples)
    return folder


@needs_dpkg
def test_real_corpus_has_two_tasks_whose_tests_are_not_for_pretraining(
    packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    also = tmp_path / "more audio"
    also.mkdir()
    soundfile.write(also / "noise.wav", np.full(8000, 0.1), 16_000)
    variables = {"MAX_TEST": "2", "MIN_FAMILY": "4", "PACKAGES": str(packages), "ALSO": str(also)}
    for _ in range(2):  # the second time in a folder that has a corpus
        output = run("real_corpus.sh", cwd=tmp_path, **variables)
    real = tmp_path / "real"
    assert output.endswith(f"licenses of the recordings: {real}/licenses\n")
    assert (real / "licenses" / "klettres-data").read_text() == "License of klettres-data\n"

    def clips(name: str) -> list[str]:
        manifest = Manifest.load(real / name)
        return [Path(manifest.row_path(row)).name for row in range(len(manifest))]

    assert len(clips("language/train.tsv")) == 6
    tests = Manifest.load(real / "language" / "test.tsv")
    paths = [tests.row_path(row) for row in range(len(tests))]
    assert [path[-11:] for path in paths] == [
        f"{language}/ab-{number}.ogg" for language in ("de", "fr") for number in (2, 4)
    ]
    assert clips("family/test.tsv") == ["drum_2.flac", "tabla_2.flac"]
    for_pretraining = sorted(clips("train.tsv") + clips("valid.tsv"))
    assert (
        len(for_pretraining) == 6 + 6 + 1 + 6 + 1 + 1
    )  # letters, syllables, nb, samples, sn, noise
    assert not {"drum_2.flac", "tabla_2.flac"} & set(for_pretraining)
    assert "noise.wav" in for_pretraining
    monkeypatch.chdir(tmp_path)
    assert [probe.name for probe in find_data("real").probes] == ["language", "family"]


@needs_dpkg
@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"PACKAGES": "."}, ".: has no klettres-data_*.deb"),
        ({"PACKAGES": "missing"}, "PACKAGES=missing: no such folder"),
        ({"OUT": "mine", "PACKAGES": "."}, "OUT=mine: has clips, which this script did not make"),
    ],
)
def test_real_corpus_refuses_wrong_folders(
    tmp_path: Path, variables: dict[str, str], message: str
) -> None:
    precious = tmp_path / "mine" / "clips" / "precious.wav"
    precious.parent.mkdir(parents=True)
    precious.touch()
    process = start("real_corpus.sh", cwd=tmp_path, **variables)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert output == f"real_corpus.sh: error: {message}\n"
    assert precious.is_file()


def test_reference_run_trains_each_seed_and_records_or_compares(tmp_path: Path) -> None:
    """In place of training, a program writes the metrics that training would."""
    stub = tmp_path / "bin" / "mae-ast"
    stub.parent.mkdir()
    stub.write_text(
        """#!/usr/bin/env bash
set -eu
echo "$@" >> calls
if [[ $1 == demo ]]; then mkdir -p "$4/corpus" && touch "$4/corpus/test.lbl"; exit; fi
mkdir -p "$6"
seed=${7#common.seed=}
line='"num_updates": 300, "loss": 7.'$seed', "mse": 1, "info_nce": 1, "info_nce_accuracy": 1'
echo '{"kind": "valid", '"$line"'}' > "$6/metrics.jsonl"
mkdir -p "$6/checkpoints"
touch "$6/checkpoints/checkpoint_last.pt"
echo '{"commit": "'$COMMIT'"}' > "$6/starts.jsonl"
echo '{"inputs": {"checkpoint": "'$DIGEST'"}, "results": {"mse, trained": 0.06, "minutes": 1}}' \
  > "$6/trained.json"
"""
    )
    stub.chmod(0o755)
    path = os.pathsep.join([str(stub.parent), str(Path(sys.executable).parent), os.environ["PATH"]])
    (tmp_path / "empty").touch()
    variables = {"PATH": path, "OUT": "my runs", "DEMO": "my demo", "COMMIT": str(commit())}
    variables["DIGEST"] = file_digest(tmp_path / "empty")
    output = run(
        "reference_run.sh", "--record", "band.csv", cwd=tmp_path, SEEDS="1 2 3", **variables
    )
    assert output == "band.csv\n"
    header, loss, *_ = (tmp_path / "band.csv").read_text().splitlines()
    assert "minutes" not in (tmp_path / "band.csv").read_text()
    assert (header, loss) == ("metric,seed1,seed2,seed3", "loss at 300,7.1,7.2,7.3")
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls[0] == "demo --corpus-only --out my demo"
    assert calls[1] == (
        "pretrain my demo/corpus --config demo --out my runs/seed1 common.seed=1 "
        "task.probe_data=my demo/corpus task.probe_interval_updates=300 task.probe_clips=500"
    )
    assert len(calls) == 4
    output = run("reference_run.sh", "--band", "band.csv", cwd=tmp_path, **variables)
    assert output.endswith("inside the band of band.csv\n")
    trained = json.loads((tmp_path / "my runs" / "seed1" / "trained.json").read_text())
    assert trained["results"]["mse, trained"] == 0.06
