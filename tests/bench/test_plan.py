"""Test ``mae-ast plan``: counts against training, times against a measured step."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from typer.testing import CliRunner

from mae_ast.bench.plan import compose_settings, make_plan, time_plan
from mae_ast.bench.state_memory import StateMemory, state_memory
from mae_ast.cli.main import app
from mae_ast.core.models.mae_ast import MaeAst
from mae_ast.core.models.registry import parse_config
from mae_ast.trainer.command import config_dir, train_command

# Samples of 30 clips of 1 to 30 s, and of two that are too short.
LENGTHS = [16_000 * n for n in range(1, 31)] + [8000, 9000]
SMALL = ("task.min_sample_size=10000", "task.max_sample_size=160000", "dataset.max_tokens=640000")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Write a manifest whose files do not exist."""
    rows = "".join(f"{n}.flac\t{length}\t16000\n" for n, length in enumerate(LENGTHS))
    (tmp_path / "train.tsv").write_text(f"/nowhere\n{rows}")
    return tmp_path


@pytest.fixture(autouse=True)
def _clear_hydra():
    yield
    GlobalHydra.instance().clear()


def plan_of(data: Path, *overrides: str, gpus: int = 1, config: str = "mae_ast"):
    settings = compose_settings(data, config, [*SMALL, *overrides])
    return make_plan(settings, [data / "train.tsv"], gpus), settings


def test_counts_batches_as_training_forms_them(data):
    plan, _ = plan_of(data)
    assert plan.num_clips == 32
    assert plan.clips_skipped == 2
    assert plan.batches.clips.sum() == 30
    # 21 clips reach 10 s, four per batch; other batches are cut to their shortest clip.
    assert list(plan.batches.clips[:5]) == [4] * 5
    assert list(plan.batches.samples[:5]) == [640_000] * 5
    assert plan.batches.clips[5] > 3
    assert plan.batches.samples[5] % plan.batches.clips[5] == 0
    assert plan.hours_per_epoch < sum(min(n, 160_000) for n in LENGTHS) / 16_000 / 3600


def test_a_mixture_is_counted_as_training_draws_it(data, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    (other / "train.tsv").write_text("/nowhere\n1.flac\t160000\t16000\n2.flac\t160000\t16000\n")
    folders = [data, other]
    settings = compose_settings(folders, "mae_ast", [*SMALL, "task.mixture=[1,3]"])
    plan = make_plan(settings, [folder / "train.tsv" for folder in folders], 1)
    assert (plan.num_clips, plan.clips_skipped, plan.batches.clips.sum()) == (34, 2, 32)
    assert plan.mixture == (
        f"clips per epoch: 8 of {data.name} (each of 30 clips 0.267 times), "
        f"24 of {other.name} (each of 2 clips 12 times)"
    )
    assert plan.batches.samples.sum() >= 24 * 160_000
    settings.task.mixture = [1, 2, 3]
    with pytest.raises(ValueError, match="the number of shares is 3"):
        make_plan(settings, [folder / "train.tsv" for folder in folders], 1)


def test_padded_clips_are_not_cut_to_the_shortest(data):
    plan, _ = plan_of(data, "task.pad_audio=true")
    kept = sum(min(n, 160_000) for n in LENGTHS if n >= 10_000)
    assert plan.batches.samples.sum() == kept


def test_samples_beyond_input_frames_are_not_counted(data):
    plan, _ = plan_of(data, "model.input_frames=98", config="ssast_patch")
    assert plan.batches.samples.sum() == 30 * 15_920  # one window and 97 shifts of 10 ms
    assert plan.num_patches == 48


@pytest.mark.parametrize(("gpus", "update_freq", "updates"), [(1, 1, 7), (2, 1, 4), (2, 2, 2)])
def test_updates_per_epoch_for_gpus_and_update_freq(data, gpus, update_freq, updates):
    plan, _ = plan_of(data, f"optimization.update_freq=[{update_freq}]", gpus=gpus)
    assert len(plan.batches.clips) == 7
    assert plan.updates_per_epoch == updates
    assert plan.clips_per_update * updates == plan.batches.clips.sum()
    assert plan.updates == 550_000
    assert plan.epochs == pytest.approx(550_000 / updates)
    assert plan.hours == pytest.approx(plan.hours_per_epoch * plan.epochs)


def test_batches_per_update_are_divided_among_the_gpus(data):
    plan, _ = plan_of(data, "task.batches_per_update=4", gpus=2)
    assert plan.update_freq == 2
    assert plan.updates_per_epoch == 2
    with pytest.raises(ValueError, match="=4: not divisible by 3 processes; use 3 or 6, or 1, 2"):
        plan_of(data, "task.batches_per_update=4", gpus=3)


def test_state_has_these_bytes_per_parameter(data):
    settings = compose_settings(data, "mae_ast", [])

    def bytes_with(gpus: int, **changes: bool) -> int:
        changed = OmegaConf.to_container(settings)
        for values in changed.values():
            if isinstance(values, dict):
                values.update({key: changes[key] for key in changes.keys() & values.keys()})
        return state_memory(OmegaConf.create(changed), 10**6, gpus).bytes_per_parameter

    assert bytes_with(1) == 16  # also with model.precision=bfloat16, which keeps them in float32
    assert bytes_with(8) == 20  # DDP sums gradients in buckets
    assert bytes_with(8, gradient_as_bucket_view=True) == 16
    assert bytes_with(1, fp16=True) == 20
    assert bytes_with(2, bf16=True) == 22
    assert bytes_with(1, bf16=True, memory_efficient_bf16=True) == 12


def test_vit_l_needs_no_sharding_and_a_larger_state_does():
    parts = {"weights": 4, "gradients": 4, "moments": 8}
    large = StateMemory(304_000_000, parts)
    assert large.describe() == (
        "4.86 GB: 304.0 M parameters x 16 bytes (4 weights, 4 gradients, 8 moments)"
    )
    assert large.smallest_gpu == 12
    assert large.advise().startswith(
        "DDP suffices, no sharding (FSDP, ZeRO) is needed: a GPU of 12"
    )
    assert StateMemory(5 * 10**9, parts).smallest_gpu is None
    assert "shard it (FSDP, ZeRO)" in StateMemory(5 * 10**9, parts).advise()


def test_the_first_limit_ends_the_run(data):
    plan, _ = plan_of(data, "optimization.max_epoch=3")
    assert plan.updates == 21
    assert plan.epochs == 3
    with pytest.raises(ValueError, match=r"max_update or .*max_epoch"):
        plan_of(data, "optimization.max_update=0")


def test_parameters_are_counted_on_the_meta_device(data):
    plan, settings = plan_of(data, "model.encoder_layers=2", "model.encoder_embed_dim=96")
    model = MaeAst(parse_config(settings.model))
    assert plan.parameters == sum(p.numel() for p in model.parameters())
    assert not any(p.is_meta for p in model.parameters())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("model.encoder_layer=3",), "encoder_layer"),
        (("task.mask_type=holes",), "mask_type 'holes'"),
        (("dataset.max_tokens=9000",), "max_tokens=9000 is below"),
        (("dataset.required_batch_size_multiple=64", "dataset.max_tokens=6400000"), "multiple=64"),
    ],
)
def test_rejects_settings_that_are_invalid_for_training(data, overrides, message):
    with pytest.raises(ValueError, match=message):
        plan_of(data, *overrides)


def results(**changes: object) -> dict:
    """Return results in which a step of 10 clips takes 2 s, 0.5 s of it in the optimizer."""
    row = {
        "name": "MAE-AST patch, 12 layers",
        "system": "mae_ast",
        "config": {"ast_kernel_size_time": 16, "dropout": 0.1},
        "batch": 10,
        "flops_per_clip": 1e11,
        "median_s": 2.0,
        "optimizer_s": 0.5,
        "precision": "bfloat16",
    }
    other = {**row, "name": "SSAST", "system": "ssast", "median_s": 99.0}
    frames = {**row, "name": "frames", "config": {**row["config"], "ast_kernel_size_time": 2}}
    failed = {"name": "big", "error": "out of memory"}
    parts = {"steps": {"rows": [failed, other, frames, {**row, **changes}]}}
    return {"parts": parts, "hardware": "a machine", "date": "2026-01-01"}


def test_time_is_proportional_to_operations(data):
    plan, settings = plan_of(data, "optimization.max_update=1000", "optimization.update_freq=[2]")
    timed = time_plan(plan, settings, results())
    per_batch = plan.clips_per_batch * plan.flops / (10 * 1e11) * 1.5
    assert timed.step_s == pytest.approx(per_batch)
    assert timed.hours == pytest.approx(1000 * (2 * per_batch + 0.5) / 3600)
    assert timed.case == "MAE-AST patch, 12 layers, 10 clips, bfloat16"
    assert timed.throughput_ratio is None
    assert timed.workers is None


def test_uses_measured_training_and_loading_rates(data):
    plan, settings = plan_of(data)
    measured = results()
    measured["parts"]["training"] = {"rows": [{"clips_per_s": 80.0}, {"clips_per_s": 100.0}]}
    row = {"clips_per_s_and_worker": 5.0, "fbank_in_workers": False}
    measured["parts"]["loading"] = {"rows": [row]}
    timed = time_plan(plan, settings, measured)
    assert timed.throughput_ratio == 0.8
    assert timed.workers == pytest.approx(plan.clips_per_batch / timed.step_s / 5)


def test_rejects_results_without_the_system(data):
    plan, settings = plan_of(data, config="ssast_patch")
    measured = results()
    measured["parts"]["steps"]["rows"] = measured["parts"]["steps"]["rows"][-1:]
    with pytest.raises(ValueError, match=r"no training step of ssast.*: mae_ast"):
        time_plan(plan, settings, measured)


def test_command_prints_counts_and_times(data):
    path = data / "results.json"
    path.write_text(json.dumps(results()))
    given = ["plan", str(data), "--gpus", "8", "--nodes", "2", "--bench", str(path), *SMALL]
    done = CliRunner().invoke(app, given)
    assert done.exit_code == 0, done.output
    said = dict(line.split("  ", 1) for line in done.output.splitlines())
    assert said["clips"].strip().startswith("30 of 32, ")
    assert "16 GPUs x update_freq 1" in said["batch per update"]
    assert said["updates"].strip() == "550,000; 1 per epoch"
    assert " M parameters x 20 bytes (4 weights, " in said["state per GPU"]
    assert said["parallelism"].strip().startswith("DDP suffices")
    assert said["epochs"].strip() == "550,000.0"
    assert "a machine, 2026-01-01" in said["measured"]
    assert "for the steps alone" in said["wall time"]
    untimed = CliRunner().invoke(app, ["plan", str(data / "train.tsv"), *SMALL])
    assert untimed.exit_code == 0, untimed.output
    assert "unknown; --bench" in untimed.output


# --- run_config ---------------------------------------------------------------------------------


def composed(tmp_path: Path, *overrides: str):
    from fairseq.dataclass.initialize import hydra_init

    from mae_ast.plugin import register

    register()
    arguments = train_command(tmp_path, "mae_ast", tmp_path / "run", list(overrides))
    hydra_init("mae_ast")
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_dir() / "pretrain"), version_base="1.1"):
        wanted = arguments[arguments.index("mae_ast") + 1 :]
        return compose("mae_ast", overrides=wanted, return_hydra_config=True)


def test_run_config_local_composes(tmp_path):
    settings = composed(tmp_path, "+run_config=local", "common.log_interval=3")
    assert settings.distributed_training.distributed_world_size == 1
    assert settings.common.log_interval == 3
    assert settings.model.encoder_layers == 12


@pytest.mark.parametrize(("nodes", "gpus"), [(1, 8), (4, 32)])
def test_run_config_slurm_composes_with_the_launcher(tmp_path, nodes, gpus):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher.config")  # registers its settings
    settings = composed(
        tmp_path,
        f"+run_config=slurm_{nodes}",
        "hydra/launcher=submitit_slurm",
        "hydra.launcher.partition=gpu",
    )
    launcher = settings.hydra.launcher
    assert settings.distributed_training.distributed_world_size == gpus
    assert launcher.nodes * launcher.tasks_per_node == gpus  # one task per GPU
    assert launcher.tasks_per_node == launcher.gpus_per_node
    assert launcher.cpus_per_task > settings.dataset.num_workers
    assert settings.distributed_training.distributed_port > 0  # fairseq needs a port on SLURM
    assert launcher.partition == "gpu"
    assert settings.hydra.sweep.dir == str(tmp_path / "run")
    assert launcher.submitit_folder == str(tmp_path / "run" / "submitit")
    assert launcher.name == "mae_ast"


@pytest.mark.slow
def test_command_accepts_a_run_config(tmp_path):
    command = train_command(tmp_path, "mae_ast", tmp_path / "run", ["+run_config=local"])
    done = subprocess.run(
        [*command, "--cfg", "job"], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "log_interval: 10" in done.stdout
    assert command[0] == sys.executable


def test_planning_needs_no_gpu(data, monkeypatch):
    def refuse(*args: object) -> None:
        raise AssertionError("a plan asked for a GPU")

    monkeypatch.setattr(torch.cuda, "init", refuse)
    assert plan_of(data, gpus=64)[0].gpus == 64
