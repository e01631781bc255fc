"""Shell recipes in ``scripts/``, each run with tiny models and data from a folder with a space."""

from __future__ import annotations

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import soundfile
import torch
import yaml

from mae_ast.prepare import esc50
from mae_ast.trainer.command import initial_weights, train_command
from tests.trainer.classification import LABELS, tone, write_pretrained
from tests.trainer.conftest import write_clips
from tests.trainer.forked import run_forked

SCRIPTS = Path(__file__).parents[2] / "scripts"
RECIPES = sorted(path.name for path in SCRIPTS.glob("*.sh"))
PRETRAINING = {"patch": "chunk_mask", "frame": "random_mask", "spans": "retain_spans"}
# Settings that the three published commands share.
PUBLISHED = {
    "model.encoder_layers": 12,
    "model.decoder_layers": 2,
    "criterion.classification_weight": 1,
    "criterion.reconstruction_weight": 10,
    "distributed_training.distributed_world_size": 1,
    "distributed_training.nprocs_per_node": 1,
    "common.log_interval": 200,
    "checkpoint.save_interval_updates": 25000,
    "optimization.max_update": 550000,
    "dataset.max_tokens": 8388608,
    "optimization.lr": [0.0001],
}
TINY_TRAINING = ("common.cpu=true", "dataset.num_workers=0", "common.tensorboard_logdir=null")
APPENDED = (  # to the settings of a recipe for pretraining
    *("model.encoder_embed_dim=32", "model.encoder_ffn_embed_dim=64"),
    *("model.encoder_attention_heads=4", "model.decoder_embed_dim=32", *TINY_TRAINING),
    *("optimization.max_update=2", "common.log_interval=1", "dataset.max_tokens=64000"),
    *("task.min_sample_size=8000", "dataset.disable_validation=true"),
)


def start(name: str, *arguments: str, cwd: Path, **variables: str) -> subprocess.Popen[str]:
    """Start a recipe with these variables, its output in a pipe."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        **variables,
    }
    return subprocess.Popen(
        [str(SCRIPTS / name), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=cwd,
        env=environment,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for a recipe to succeed and return its output; kill it if the test is aborted."""
    try:
        output, _ = process.communicate()  # pytest has a timeout
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, output[-3_000:]
    return output


def run(name: str, *arguments: str, cwd: Path, **variables: str) -> str:
    """Run a recipe to its end and return its output."""
    return finish(start(name, *arguments, cwd=cwd, **variables))


def test_all_recipes_are_here():
    assert [
        *("finetune_esc50.sh", "pretrain_frame.sh", "pretrain_patch.sh", "pretrain_spans.sh"),
        *("real_corpus.sh", "reference_run.sh", "superb.sh"),
    ] == RECIPES


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_shows_usage_and_variables(name, option, tmp_path):
    text = run(name, option, cwd=tmp_path)
    assert f"scripts/{name}" in text
    for line in (SCRIPTS / name).read_text(encoding="utf-8").splitlines():
        if re.match(r"[A-Z_]+=\$\{", line):
            assert line in text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", RECIPES)
def test_stops_at_errors_and_unset_variables(name):
    assert "\nset -euo pipefail\n" in (SCRIPTS / name).read_text(encoding="utf-8")
    assert os.access(SCRIPTS / name, os.X_OK)


# --- pretraining --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of the three recipes, started at once: two updates of a narrow model each."""
    folder = tmp_path_factory.mktemp("pretraining") / "a folder"
    (folder / "my data").mkdir(parents=True)
    write_clips(folder / "my data", "train", [1.3, 1.1, 1.2, 1.5])
    write_clips(folder / "my data", "valid", [1.1, 1.2], first_seed=10)
    running = {
        name: start(
            f"pretrain_{name}.sh",
            *APPENDED,
            cwd=folder,
            DATA="my data",
            OUT=f"my runs/{name}",
        )
        for name in PRETRAINING
    }
    for process in running.values():
        finish(process)
    return folder / "my runs"


@pytest.mark.slow
@pytest.mark.parametrize("name", PRETRAINING)
def test_pretraining_settings_are_the_published_ones(pretrained, name):
    recorded = yaml.safe_load((pretrained / name / ".hydra" / "overrides.yaml").read_text())
    assert recorded[-len(APPENDED) :] == list(APPENDED)
    pairs = [each.split("=", 1) for each in recorded[: -len(APPENDED)]]
    given = {key: yaml.safe_load(value) for key, value in pairs}
    mel, frames = (16, 16) if name == "patch" else (128, 2)
    expected = PUBLISHED | {
        "task.mask_type": PRETRAINING[name],
        "model.random_mask_prob": 1.45 if name == "spans" else 0.75,
        **{f"model.ast_kernel_{each}_chan": mel for each in ("size", "stride")},
        **{f"model.ast_kernel_{each}_time": frames for each in ("size", "stride")},
    }
    assert {key: given.get(key) for key in expected} == expected
    others = set(given) - set(expected) - {"common.user_dir", "task.data"}
    assert others <= {"lr_scheduler.warmup_updates", "model.mask_length"}
    assert given["lr_scheduler.warmup_updates"] == 32_000
    assert given.get("model.mask_length", 10) == 10


@pytest.mark.slow
@pytest.mark.parametrize("name", PRETRAINING)
def test_pretraining_writes_a_checkpoint_of_the_model(pretrained, name):
    checkpoint = pretrained / name / "checkpoints" / "checkpoint_last.pt"
    state = torch.load(checkpoint, weights_only=True)
    assert state["optimizer_history"][-1]["num_updates"] == 2
    assert state["cfg"]["task"]["mask_type"] == PRETRAINING[name]
    layers = {key.split(".")[2] for key in state["model"] if key.startswith("encoder.layers.")}
    assert len(layers) == 12
    assert state["model"]["post_extract_proj.weight"].shape == (32, 256)


# --- fine-tuning --------------------------------------------------------------------------------


def write_esc50(root: Path) -> None:
    """Write ESC-50's layout: in each fold one clip of each of three classes."""
    (root / "audio").mkdir(parents=True)
    (root / "meta").mkdir()
    rows: list[Sequence[object]] = [
        ("filename", "fold", "target", "category", "esc10", "src_file", "take")
    ]
    for fold in range(1, 6):
        for target, name in enumerate(LABELS.mids):
            clip = f"{fold}-{target}-A-{target}.wav"
            samples = tone([target], 0.3, 100 * fold + target)
            soundfile.write(root / "audio" / clip, samples, 16_000)
            rows.append((clip, fold, target, name, True, f"{fold}{target}", "A"))
    with (root / "meta" / "esc50.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)


@pytest.mark.slow
def test_esc50_is_prepared_cross_validated_and_reported(tmp_path):
    """Four of the folds are complete, as copies of one run; the recipe trains the fifth."""
    write_esc50(tmp_path / "my data" / "ESC-50")
    checkpoint = write_pretrained(tmp_path / "tiny.pt")
    few = ("optimization.max_update=1", "optimization.max_epoch=0", "dataset.batch_size=6")
    no_validation = ("dataset.validate_interval=100", "model.precision=float32")
    arguments = (*TINY_TRAINING, *few, *no_validation)
    out = tmp_path / "my runs"
    esc50.prepare(tmp_path / "my data" / "ESC-50", out / "manifests")
    settings = [*initial_weights(str(checkpoint), random_weights=False), *arguments]
    fold1 = out / "folds" / "fold1"
    command = train_command(out / "manifests" / "fold1", "esc50", fold1, settings, "finetune")
    done = run_forked(command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for fold in range(2, 5):
        shutil.copytree(fold1, out / "folds" / f"fold{fold}")

    variables = {"ESC50": "my data/ESC-50", "CHECKPOINT": "tiny.pt", "OUT": "my runs"}
    output = run("finetune_esc50.sh", *arguments, cwd=tmp_path, **variables)
    assert re.findall(r"(fold\d): training", output) == ["fold5"]
    with (out / "folds" / "folds.csv").open(newline="") as file:
        _, *rows = csv.reader(file)
    assert [row[0] for row in rows[:5]] == [f"fold{n}" for n in range(1, 6)]
    scores = torch.tensor([float(row[2]) for row in rows[:5]])
    report = (out / "report.md").read_text().splitlines()
    assert report[0] == "| checkpoint | preset | folds | clips | mean accuracy | std |"
    assert report[2] == f"| tiny.pt | esc50 | 5 | 15 | {scores.mean():.4f} | {scores.std():.4f} |"
    assert output.endswith("\n".join(report) + "\n")
    for fold in range(1, 6):
        assert (out / "folds" / f"fold{fold}" / "report" / "classes.csv").is_file()


# --- SUPERB -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_superb_trains_tests_and_makes_the_row(tmp_path):
    """One task is run; the logs of the other tests are those of an earlier call."""
    superb = pytest.importorskip("tests.superb.conftest", reason="needs s3prl")
    out = tmp_path / "my runs"
    for name, accuracy in [("sid", 0.6330), *((f"er/fold{n}", 0.6 + n / 100) for n in range(1, 5))]:
        (out / name).mkdir(parents=True)
        (out / name / "test.log").write_text(f"some line\ntest acc: {accuracy}\nanother\n")
    superb.write_speech_commands(tmp_path / "my data")
    write_pretrained(tmp_path / "tiny.pt")
    datarc = "config.downstream_expert.datarc"
    options = ("-o", f"{datarc}.num_workers=0,,{datarc}.batch_size=4")
    variables = {"CHECKPOINT": "tiny.pt", "KS": "my data", "TASKS": "ks", "OUT": "my runs"}
    output = run("superb.sh", *options, cwd=tmp_path, STEPS="2", **variables)
    assert (out / "ks" / "states-2.ckpt").is_file()
    log = (out / "ks" / "test.log").read_text()
    (accuracy,) = [float(line[10:]) for line in log.splitlines() if line.startswith("test acc: ")]
    ks = f"{100 * accuracy:.1f}"
    scores = (out / "scores.md").read_text()
    assert scores.splitlines()[2] == f"| tiny.pt | {ks} | 63.3 | - |"  # one fold of ER is missing
    assert output.endswith(scores)
    (out / "er" / "fold5").mkdir()
    (out / "er" / "fold5" / "test.log").write_text("test acc: 0.65\n")
    run("superb.sh", cwd=tmp_path, **variables | {"TASKS": " "})
    assert (out / "scores.md").read_text().splitlines()[2] == f"| tiny.pt | {ks} | 63.3 | 63.0 |"


def test_superb_refuses_an_unknown_task_before_it_starts(tmp_path):
    process = start("superb.sh", cwd=tmp_path, TASKS="ks asr")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert output == "superb.sh: error: TASKS=asr: must be ks, sid or er\n"
    assert list(tmp_path.iterdir()) == []
