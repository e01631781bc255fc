# ruff: noqa: E501  (the commands are quoted as published)
"""The three published pretraining commands, verbatim and at full model size."""

from __future__ import annotations

import math
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fairseq.models import MODEL_DATACLASS_REGISTRY, build_model
from omegaconf import OmegaConf

import mae_ast
from mae_ast import plugin
from mae_ast.hub import export
from tests.sounds import speech_like

from .conftest import CONFIG_DIR, ONLY_TRAINING, TRAIN_PROGRAM, USER_DIR, Training, write_clips
from .forked import run_forked

SETUP = """\
export HYDRA_FULL_ERROR=1
data_dir={data_dir}
config_dir={config_dir}
user_dir={user_dir}
"""

PATCH_CHUNK = """\
fairseq-hydra-train \\
  --config-dir "${config_dir}" --config-name mae_ast common.user_dir="${user_dir}" task.data="${data_dir}" model._name=mae_ast criterion._name=mae_ast \\
  model.encoder_layers=12 model.decoder_layers=2 \\
  model.random_mask_prob=0.75 task.mask_type="chunk_mask" \\
  model.ast_kernel_size_chan=16 model.ast_kernel_size_time=16 model.ast_kernel_stride_chan=16 model.ast_kernel_stride_time=16 \\
  criterion.classification_weight=1 criterion.reconstruction_weight=10 \\
  distributed_training.distributed_world_size=1 distributed_training.nprocs_per_node=1 \\
  common.log_interval=200 checkpoint.save_interval_updates=25000 \\
  optimization.max_update=550000 dataset.max_tokens=8388608 optimization.lr=[0.0001]\\
  hydra.run.dir=/path/to/output_model_directory"""

FRAME_RANDOM = """\
fairseq-hydra-train \\
  --config-dir "${config_dir}" --config-name mae_ast common.user_dir="${user_dir}" task.data="${data_dir}" model._name=mae_ast criterion._name=mae_ast \\
  model.encoder_layers=12 model.decoder_layers=2 \\
  model.random_mask_prob=0.75 task.mask_type="random_mask" \\
  model.ast_kernel_size_chan=128 model.ast_kernel_size_time=2 model.ast_kernel_stride_chan=128 model.ast_kernel_stride_time=2 \\
  criterion.classification_weight=1 criterion.reconstruction_weight=10 \\
  distributed_training.distributed_world_size=1 distributed_training.nprocs_per_node=1 \\
  common.log_interval=200 checkpoint.save_interval_updates=25000 \\
  optimization.max_update=550000 dataset.max_tokens=8388608 optimization.lr=[0.0001]\\
  hydra.run.dir=/path/to/output_model_directory"""

FRAME_SPANS = """\
fairseq-hydra-train \\
  --config-dir "${config_dir}" --config-name mae_ast common.user_dir="${user_dir}" task.data="${data_dir}" model._name=mae_ast criterion._name=mae_ast \\
  model.encoder_layers=12 model.decoder_layers=2 \\
  model.random_mask_prob=1.45 task.mask_type="retain_spans" \\
  model.ast_kernel_size_chan=128 model.ast_kernel_size_time=2 model.ast_kernel_stride_chan=128 model.ast_kernel_stride_time=2 \\
  criterion.classification_weight=1 criterion.reconstruction_weight=10 \\
  distributed_training.distributed_world_size=1 distributed_training.nprocs_per_node=1 \\
  common.log_interval=200 checkpoint.save_interval_updates=25000 \\
  optimization.max_update=550000 dataset.max_tokens=8388608 optimization.lr=[0.0001]\\
  hydra.run.dir=/path/to/output_model_directory"""


def start_published(command: str, folder: Path, name: str, *appended: str) -> Training:
    """Run a command in a shell with its paths replaced and overrides for a short run appended."""
    assert command.count("/path/to/output_model_directory") == 1
    out = folder / name
    setup = SETUP.format(
        data_dir=shlex.quote(str(folder / "data")),
        config_dir=shlex.quote(str(CONFIG_DIR)),
        user_dir=shlex.quote(str(USER_DIR)),
    )
    command = command.replace("/path/to/output_model_directory", shlex.quote(str(out)))
    path = f"export PATH={shlex.quote(str(TRAIN_PROGRAM.parent))}:$PATH\n"
    return Training(path + setup + " ".join([command, *appended]), folder / f"{name}.log")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Training]]:
    """Start the three commands at the same time, limited to two updates."""
    folder = tmp_path_factory.mktemp("published")
    data = folder / "data"
    data.mkdir()
    write_clips(data, "train", [2.1, 2.3, 2.2, 1.9])  # the preset skips the last
    write_clips(data, "valid", [2.1, 2.2], first_seed=10)
    short = ("optimization.max_update=2", "common.log_interval=1")
    no_save, no_validation = ONLY_TRAINING
    runs = {
        # Saves one checkpoint, 1.2 GB.
        "patches": start_published(
            PATCH_CHUNK, folder, "patches", *short, no_validation, "checkpoint.save_interval=9"
        ),
        "random": start_published(
            FRAME_RANDOM, folder, "random", *short, "checkpoint.no_save_optimizer_state=true"
        ),
        "spans": start_published(FRAME_SPANS, folder, "spans", *short, no_save, no_validation),
    }
    yield runs
    for run in runs.values():
        run.kill()
    for name in runs:
        shutil.rmtree(folder / name, ignore_errors=True)


def assert_losses_are_finite(run: Training) -> None:
    assert sorted(run.updates) == [1, 2]
    for values in run.updates.values():
        loss, mse, info_nce = (float(values[key]) for key in ("loss", "mse", "info_nce"))
        assert math.isfinite(loss)
        assert loss == pytest.approx(10 * mse + info_nce, rel=1e-3)
        assert 0 < float(values["gnorm"]) < 1e3
        assert 0 <= float(values["info_nce_accuracy"]) <= 1
        assert 0 < float(values["info_nce_chance"]) < 0.05
        assert "accuracy" not in values


@pytest.mark.slow
def test_patch_chunk_command(published: dict[str, Training]) -> None:
    run = published["patches"].finish()
    assert_losses_are_finite(run)
    assert {values["mask_ratio"] for values in run.updates.values()} == {"0.75"}
    assert "3 clips" in run.output
    assert "skipped 1 short" in run.output

    checkpoint = run.log.with_suffix("") / "checkpoints" / "checkpoint_last.pt"
    state = torch.load(checkpoint, weights_only=True, mmap=True)
    assert state["cfg"]["model"]["encoder_layers"] == 12
    assert state["cfg"]["task"]["mask_type"] == "chunk_mask"
    model = mae_ast.load(checkpoint)
    assert model.mask_type == "chunk_mask"
    assert not model.training
    states = model.hidden_states(torch.zeros(1, 32_000, dtype=torch.int16))
    assert len(states) == 12
    assert states[-1].shape == (1, 12 * 8, 768)
    assert bool(torch.isfinite(states[-1]).all())


@pytest.mark.slow
def test_frame_random_command(published: dict[str, Training]) -> None:
    run = published["random"].finish()
    assert_losses_are_finite(run)
    assert {values["mask_ratio"] for values in run.updates.values()} == {"0.75"}
    assert math.isfinite(float(run.stats("valid")[0]["valid_loss"]))
    assert list((run.log.with_suffix("") / "tblog" / "pictures").glob("events.out.tfevents.*"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["patches", "random"])
def test_exported_checkpoint_gives_equal_features_in_s3prl(
    published: dict[str, Training], tmp_path: Path, name: str
) -> None:
    """Compare with the stock s3prl expert on a checkpoint trained here and exported."""
    hubconf = pytest.importorskip("s3prl.upstream.mae_ast.hubconf", reason="needs s3prl")
    run = published[name].finish()
    model = mae_ast.load(run.log.with_suffix("") / "checkpoints" / "checkpoint_last.pt")
    export.to_released_file(model, tmp_path / "released.pt")
    expert = hubconf.mae_ast_local(str(tmp_path / "released.pt")).eval()
    (tmp_path / "released.pt").unlink()
    for seconds in (0.3, 9.97):
        wave = speech_like(round(16_000 * seconds))
        with torch.no_grad():
            ours = model.extract_features(wave, window_s=30.0).time_steps
            theirs = expert([wave])["hidden_states"]
        assert len(ours) == len(theirs) == 12
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_frame_spans_command(published: dict[str, Training]) -> None:
    run = published["spans"].finish()
    assert_losses_are_finite(run)
    for values in run.updates.values():
        assert float(values["mask_ratio"]) == pytest.approx(1 - math.exp(-1.45), abs=0.006)


@pytest.mark.parametrize(
    ("patch", "mask_type", "random_mask_prob"),
    [
        ((16, 16), "chunk_mask", 0.75),
        ((128, 2), "random_mask", 0.75),
        ((128, 2), "retain_spans", 1.45),
    ],
)
def test_published_settings_build_with_six_layers(
    patch: tuple[int, int], mask_type: str, random_mask_prob: float
) -> None:
    plugin.register()
    chan, time = patch
    cfg = OmegaConf.merge(
        OmegaConf.structured(MODEL_DATACLASS_REGISTRY["mae_ast"]),
        {
            "encoder_layers": 6,
            "random_mask_prob": random_mask_prob,
            "ast_kernel_size_chan": chan,
            "ast_kernel_stride_chan": chan,
            "ast_kernel_size_time": time,
            "ast_kernel_stride_time": time,
        },
    )
    cfg._name = "mae_ast"
    task = OmegaConf.create({"cfg": {"mask_type": mask_type}})
    with torch.device("meta"):
        model = build_model(cfg, task)
    assert len(model.encoder.layers) == 6
    assert model.post_extract_proj.weight.shape == (768, chan * time)


def test_register_works_after_importing_the_package(tmp_path: Path) -> None:
    """fairseq ignores a user_dir whose package is already imported."""
    program = tmp_path / "program.py"
    program.write_text(f"""
import mae_ast, mae_ast.core.models.mae_ast
from argparse import Namespace
from fairseq.utils import import_user_module
from mae_ast import plugin
import_user_module(Namespace(user_dir={str(USER_DIR)!r}))
from fairseq.tasks import TASK_REGISTRY, TASK_DATACLASS_REGISTRY
from fairseq.models import MODEL_REGISTRY
from fairseq.criterions import CRITERION_REGISTRY
assert "mae_ast" not in MODEL_REGISTRY
plugin.register()
plugin.register()
assert TASK_REGISTRY["mae_ast_pretraining"].__name__ == "MaeAstPretrainingTask"
assert MODEL_REGISTRY["mae_ast"].__name__ == "FairseqMaeAst"
assert CRITERION_REGISTRY["mae_ast"].__name__ == "MaeAstCriterion"
assert "mae_ast_pretraining" in TASK_DATACLASS_REGISTRY
import_user_module(Namespace(user_dir={str(USER_DIR)!r}))
""")
    done = run_forked([program])
    assert done.returncode == 0, done.stderr
