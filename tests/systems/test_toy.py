"""A system in one file, one row of the registry and one preset works with the ordinary commands."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mae_ast
from mae_ast.finetune.checkpoint import load_finetuned
from mae_ast.trainer.command import module_command
from tests.systems import toy
from tests.trainer.classification import write_corpus

pytestmark = pytest.mark.slow

Command = Callable[..., tuple[str, str]]
UPDATES = 20
PRESET = f"""
common: {{log_format: json, log_interval: 1, tensorboard_logdir: tblog}}
dataset: {{num_workers: 0, batch_size: 8}}
optimization: {{max_update: {UPDATES}, lr: [0.001]}}
task: {{_name: mae_ast_pretraining, data: "???", mask_type: random_mask, pad_audio: true}}
criterion: {{_name: mae_ast, classification_weight: 0}}
optimizer: {{_name: adam}}
lr_scheduler: {{_name: fixed}}
model:
  _name: toy
  encoder_layers: 2
  encoder_embed_dim: 24
  encoder_ffn_embed_dim: 40
  encoder_attention_heads: 3
  ema_decay: 0.9
"""
# Registers the toy in each process, as a row of the registry does.
ROW = "from tests.systems import toy\ntoy.register()\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    write_corpus(folder / "data")
    (folder / "toy.yaml").write_text(PRESET)
    (folder / "row").mkdir()
    (folder / "row" / "sitecustomize.py").write_text(ROW)
    return folder


def train(folder: Path, *arguments: object) -> list[dict[str, Any]]:
    """Run a command that trains, and return the values that each update logged."""
    paths = (folder / "row", Path(mae_ast.__file__).parents[1])
    done = subprocess.run(
        [*module_command("mae_ast"), *map(str, arguments), "common.cpu=true"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2_000:] + done.stderr[-2_000:]
    lines = (folder / str(arguments[arguments.index("--out") + 1])).rglob("hydra_train.log")
    logged = [line for file in lines for line in file.read_text().splitlines()]
    return [json.loads(line.partition(" - ")[2]) for line in logged if "[train_inner]" in line]


@pytest.fixture(scope="module")
def pretrained(folder: Path) -> Path:
    """Return the folder of a pretraining run."""
    logged = train(folder, "pretrain", folder / "data", "--config", "toy.yaml", "--out", "run")
    losses = [float(values["loss"]) for values in logged]
    assert len(losses) == UPDATES
    assert np.isfinite(losses).all()
    assert len(set(losses)) == UPDATES
    return folder / "run"


def test_file_is_short() -> None:
    assert len(Path(toy.__file__).read_text().splitlines()) <= 150


def test_pretrained_model_has_a_teacher_of_its_own(pretrained: Path) -> None:
    model = mae_ast.load(pretrained)
    assert isinstance(model, toy.Toy)
    assert (model.mask_type, model.config.ema_decay) == ("random_mask", 0.9)
    for name, value in model.teacher.named_parameters():
        student = dict(model.named_parameters())[name]
        assert not torch.equal(value, student)
        assert torch.allclose(value, student, atol=0.05)


def test_probe_compares_it_with_random_weights(pretrained: Path, mae_ast_command: Command) -> None:
    out, message = mae_ast_command("probe", pretrained, pretrained.parent / "data" / "train.tsv")
    assert not message
    for words in ("pretrained", "random weights", "log-mel"):
        assert words in out


def test_features_are_extracted(pretrained: Path, mae_ast_command: Command, tmp_path: Path) -> None:
    manifest = pretrained.parent / "data" / "valid.tsv"
    _, message = mae_ast_command("extract", pretrained, manifest, tmp_path, "--pool")
    assert not message
    found = np.load(tmp_path / "valid_0_1.npy")
    assert found.shape == (9, 8 * 24)
    clip = pretrained.parent / "data" / "valid_00.flac"
    expected = mae_ast.load(pretrained).extract_features(clip).pooled[0, -1]
    assert np.allclose(found[0], expected, atol=1e-5)


def test_it_is_converted(pretrained: Path, mae_ast_command: Command, tmp_path: Path) -> None:
    _, message = mae_ast_command("convert", pretrained, tmp_path / "hub", "--to", "safetensors")
    assert not message
    there, here = (mae_ast.load(source) for source in (tmp_path / "hub", pretrained))
    assert there.config == here.config
    for name, value in here.state_dict().items():
        assert torch.equal(there.state_dict()[name], value)
    _, message = mae_ast_command("convert", pretrained, tmp_path / "a.pt", "--to", "released")
    assert message.endswith("a model of kind 'toy' has no released layout")
    clip = pretrained.parent / "data" / "valid_00.flac"
    _, message = mae_ast_command("reconstruct", pretrained, clip, "-o", tmp_path / "a.png")
    assert "predicts 24 values per masked patch, not its 256" in message


def test_it_is_fine_tuned(pretrained: Path, mae_ast_command: Command) -> None:
    folder = pretrained.parent
    settings = (
        *("optimization.max_update=6", "dataset.num_workers=0", "dataset.batch_size=8"),
        *("common.log_interval=1", "model.overlap=true", "task.drop_time=0.3", "model.pool=tokens"),
        "model.input_frames=64",
    )
    logged = train(
        folder,
        *("finetune", pretrained, folder / "data", "--config", "demo", "--out", "tuned"),
        *settings,
    )
    assert len(logged) == 6
    found = load_finetuned(folder / "tuned")
    assert type(found.model.encoder) is toy.ToyEncoder
    assert found.model.encoder.patch_shape.time_stride == 10
    clip = folder / "data" / "valid_00.flac"
    out, message = mae_ast_command("predict", folder / "tuned", clip)
    assert not message
    assert all(name in out for name in found.labels.names)
    before, after = mae_ast.load(pretrained), mae_ast.load(folder / "tuned")
    assert after.encoder_only
    first, second = (m.post_extract_proj.first.weight for m in (before, after))
    assert not torch.equal(first, second)
    assert torch.allclose(first, second, atol=0.1)  # it started from the pretrained weights
