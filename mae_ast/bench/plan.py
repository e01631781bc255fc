"""What a pretraining will be, before it runs: batches, updates, epochs, hours of audio, time.

Settings are composed by hydra and batches made by the data set, as training does both; nothing is
decoded. Time comes from a measured step, scaled by counted operations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq.data import data_utils
from fairseq.dataclass.initialize import add_defaults, hydra_init
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mae_ast.bench.work import Split, Work, split, step_work
from mae_ast.console import bar
from mae_ast.core.frontend.collate import Collater
from mae_ast.core.frontend.fbank import num_samples_of_frames
from mae_ast.core.io.audio import SAMPLE_RATE
from mae_ast.core.io.manifest import Manifest
from mae_ast.core.io.plural import plural
from mae_ast.core.models.registry import SYSTEMS, parse_config, system_name
from mae_ast.data.pretraining_dataset import PretrainingDataset
from mae_ast.plugin import register
from mae_ast.trainer.command import train_command
from mae_ast.trainer.settings import drop_defaults_of_others, explain

TASK = "mae_ast_pretraining"
# What makes another step of the same system, beside its sizes.
FORMS = ("two_pass", "decoder_attention")


@dataclass(frozen=True)
class Batches:
    """An epoch's batches, of all GPUs.

    Args:
        clips: (batches,) int64.
        samples: (batches,) int64, at 16 kHz, after cropping or padding of none.
        length: the median batch's samples of a clip.
    """

    clips: np.ndarray
    samples: np.ndarray
    length: int


@dataclass(frozen=True)
class Plan:
    """What a run amounts to.

    Args:
        gpus: in all.
        update_freq: batches a GPU and update.
        clips_in_all, clips_left_out: of the manifest.
        batches: of an epoch.
        updates_an_epoch, updates, epochs: the last as a fraction.
        hours_an_epoch, hours: of audio.
        parameters: of the model.
        patches: of a clip of the median batch.
        work: a clip's share of a step.
    """

    gpus: int
    update_freq: int
    clips_in_all: int
    clips_left_out: int
    batches: Batches
    updates_an_epoch: int
    updates: int
    epochs: float
    hours_an_epoch: float
    hours: float
    parameters: int
    patches: Split
    work: Work

    @property
    def clips_a_batch(self) -> float:
        """Of a GPU, on average."""
        return float(self.batches.clips.mean())

    @property
    def clips_an_update(self) -> float:
        """Of all GPUs, on average; at the end of an epoch some may have none."""
        return float(self.batches.clips.sum()) / self.updates_an_epoch


@dataclass(frozen=True)
class Timed:
    """How long it takes.

    Args:
        case: that was measured, in words.
        scale: operations of this run's batch over those of that case's.
        step_s: of one batch on one GPU.
        hours: of all updates.
        share: of the synthetic-batch rate that training from files reached there; ``None``: not
            measured.
        workers: processes that decode, wanted by each GPU; ``None``: not measured.
    """

    case: str
    scale: float
    step_s: float
    hours: float
    share: float | None
    workers: float | None


def compose_settings(data: Path, config: str, overrides: Sequence[str]) -> Any:
    """What ``mae-ast pretrain`` with the same arguments trains with.

    Raises:
        ValueError: no such preset, or an override does not fit.
    """
    register()
    arguments = train_command(data, config, Path("outputs"), list(overrides))
    folder = arguments[arguments.index("--config-dir") + 1]
    name = arguments[arguments.index("--config-name") + 1]
    # What says where and how a run starts is not of its plan.
    launching = ("hydra.", "hydra/", "+run_config=", "-")
    wanted = [w for w in arguments[arguments.index(name) + 1 :] if not w.startswith(launching)]
    hydra_init(name)
    GlobalHydra.instance().clear()
    preset = OmegaConf.load(Path(folder) / f"{name}.yaml")
    try:
        with initialize_config_dir(folder, version_base="1.1"):
            settings = compose(name, overrides=wanted)
        drop_defaults_of_others(settings)
        add_defaults(settings)
        OmegaConf.resolve(settings)
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(explain(error, preset, f"{name}.yaml")) from None
    if settings.task._name != TASK:
        raise ValueError(f"task._name={settings.task._name}; plans are of {TASK}")
    return settings


def make_plan(settings: Any, manifest: Path, gpus: int) -> Plan:
    """Count.

    Args:
        settings: of :func:`compose_settings`.
        manifest: the training's.
        gpus: in all.

    Raises:
        FileNotFoundError, ValueError: a manifest or settings that training would refuse.
    """
    task, data = settings.task, settings.dataset
    config = parse_config(settings.model)
    config.validate(task.mask_type)
    rows = Manifest.read(manifest)
    rows.probe_rates(bar("reading sample rates", "file"))
    dataset = PretrainingDataset(
        rows,
        Collater(config, task.mask_type, pad=task.pad_audio, random_crop=task.random_crop),
        seed=settings.common.seed,
        shuffle=True,
        min_samples=task.min_sample_size,
        max_keep_samples=task.max_keep_size,
        max_samples=task.max_sample_size,
    )
    if data.max_tokens is None and data.batch_size is None:
        raise ValueError("neither dataset.max_tokens nor dataset.batch_size says what a batch is")
    batches, left_out = _batches(dataset, config, task, data)
    (update_freq, *others) = settings.optimization.update_freq
    if others:
        raise ValueError("optimization.update_freq has several values; plans take one")
    a_gpu = math.ceil(len(batches.clips) / gpus)
    updates_an_epoch = math.ceil(a_gpu / update_freq)
    updates = _updates(settings.optimization, updates_an_epoch)
    hours_an_epoch = float(batches.samples.sum()) / SAMPLE_RATE / 3600
    epochs = updates / updates_an_epoch
    patches = split(config, task.mask_type, batches.length)
    return Plan(
        gpus=gpus,
        update_freq=update_freq,
        clips_in_all=len(rows),
        clips_left_out=len(rows) - len(dataset) + left_out,
        batches=batches,
        updates_an_epoch=updates_an_epoch,
        updates=updates,
        epochs=epochs,
        hours_an_epoch=hours_an_epoch,
        hours=hours_an_epoch * epochs,
        parameters=_num_parameters(config),
        patches=patches,
        work=step_work(config, patches, config.precision != "float32"),
    )


def _batches(dataset: Any, config: Any, task: Any, data: Any) -> tuple[Batches, int]:
    """As fairseq's trainer makes them, and how many clips fit into none."""
    with data_utils.numpy_seed(dataset.seed + 1):
        order = dataset.ordered_indices()
    longest = data.max_tokens
    if longest is not None:
        order = order[dataset.sizes[order] <= longest]
    if not len(order):
        raise ValueError(f"dataset.max_tokens={longest} is below the shortest clip")
    made = dataset.batch_by_size(
        order,
        max_tokens=data.max_tokens,
        max_sentences=data.batch_size,
        required_batch_size_multiple=data.required_batch_size_multiple,
    )
    if not made:
        raise ValueError(
            f"dataset.required_batch_size_multiple={data.required_batch_size_multiple} leaves no "
            "batch of so few clips"
        )
    most = np.iinfo(np.int64).max
    if config.input_frames is not None:
        most = num_samples_of_frames(config.input_frames)
    clips = np.array([len(batch) for batch in made])
    sizes = [np.minimum(dataset.sizes[np.asarray(batch)], most) for batch in made]
    if task.pad_audio:
        samples = np.array([size.sum() for size in sizes])
        lengths = np.array([size.max() for size in sizes])
    else:
        lengths = np.array([size.min() for size in sizes])
        samples = lengths * clips
    left_out = len(dataset) - int(clips.sum())
    return Batches(clips, samples, int(np.median(lengths))), left_out


def _updates(optimization: Any, updates_an_epoch: int) -> int:
    limits = []
    if optimization.max_update:
        limits.append(optimization.max_update)
    if optimization.max_epoch:
        limits.append(optimization.max_epoch * updates_an_epoch)
    if not limits:
        raise ValueError("neither optimization.max_update nor max_epoch says when training ends")
    return int(min(limits))


def _num_parameters(config: Any) -> int:
    with torch.device("meta"):
        network = SYSTEMS[system_name(config)].network(config)
    return sum(p.numel() for p in network.parameters())


def time_plan(plan: Plan, settings: Any, results: Mapping[str, Any]) -> Timed:
    """Scale a measured step to this run's.

    Args:
        plan: the run.
        settings: its settings.
        results: of ``mae-ast bench``.

    Raises:
        ValueError: no step of this system was measured.
    """
    parts = results["parts"]
    steps = [row for row in parts.get("steps", {}).get("rows", []) if "error" not in row]
    batch_flops = plan.clips_a_batch * plan.work.flops
    row = _nearest(batch_flops, settings.model, steps)
    per_s = row["batch"] * row["flops_per_clip"] / max(row["median_s"] - row["optimizer_s"], 1e-9)
    forward_backward_s = batch_flops / per_s
    update_s = plan.update_freq * forward_backward_s + row["optimizer_s"]
    return Timed(
        case=f"{row['name']}, {plural(row['batch'], 'clip')}, {row['precision']}",
        scale=batch_flops / (row["batch"] * row["flops_per_clip"]),
        step_s=forward_backward_s,
        hours=plan.updates * update_s / 3600,
        share=_share_of_synthetic(parts),
        workers=_workers_wanted(parts, plan.clips_a_batch / forward_backward_s),
    )


def _nearest(
    batch_flops: float, model: Any, rows: Sequence[Mapping[str, Any]]
) -> Mapping[str, Any]:
    """The case of the same system, most alike in its patches, dropout and operations a step."""
    alike = [
        row
        for row in rows
        if row["system"] == model._name
        and all(row["config"].get(key) == getattr(model, key, None) for key in FORMS)
    ]
    if not alike:
        known = ", ".join(sorted({row["system"] for row in rows})) or "none"
        raise ValueError(f"the results hold no step of {model._name}; they hold: {known}")

    def distance(row: Mapping[str, Any]) -> tuple[bool, bool, float]:
        config = row["config"]
        other_patches = config["ast_kernel_size_time"] != model.ast_kernel_size_time
        other_dropout = (config["dropout"] > 0) != (model.dropout > 0)
        ratio = math.log(batch_flops / (row["batch"] * row["flops_per_clip"]))
        return other_patches, other_dropout, abs(ratio)

    return min(alike, key=distance)


def _share_of_synthetic(parts: Mapping[str, Any]) -> float | None:
    rows = [row for row in parts.get("training", {}).get("rows", []) if "error" not in row]
    if len(rows) != 2:
        return None
    from_files, synthetic = (row["clips_per_s"] for row in rows)
    return float(min(1.0, from_files / synthetic))


def _workers_wanted(parts: Mapping[str, Any], clips_per_s: float) -> float | None:
    rows = [row for row in parts.get("loading", {}).get("rows", []) if "error" not in row]
    rates = [row["clips_per_s_and_worker"] for row in rows if not row["fbank_in_workers"]]
    return clips_per_s / min(rates) if rates else None
