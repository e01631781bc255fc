"""Plan a pretraining run before it starts: batches, updates, epochs, hours of audio, time.

As in training, hydra composes the settings and the data set forms the batches; no audio is decoded.
The time is that of a measured step, scaled by counted operations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq.data import data_utils
from fairseq.dataclass.initialize import add_defaults, hydra_init
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mae_ast.bench.work import count_flops, draw_mask
from mae_ast.console import bar
from mae_ast.core.frontend.collate import Collater
from mae_ast.core.frontend.fbank import num_samples_of_frames
from mae_ast.core.io.audio import SAMPLE_RATE
from mae_ast.core.io.joined import read_manifests
from mae_ast.core.io.plural import plural
from mae_ast.core.models.registry import SYSTEMS, parse_pretraining_config, system_name
from mae_ast.data.mixed_dataset import MixedDataset
from mae_ast.data.mixture import Mixture
from mae_ast.data.pretraining_dataset import PretrainingDataset
from mae_ast.plugin import register
from mae_ast.trainer.command import Data, train_command
from mae_ast.trainer.global_batch import set_update_freq
from mae_ast.trainer.presets import check_preset, compose_preset, search_path_of
from mae_ast.trainer.schedule import planned_updates
from mae_ast.trainer.settings import drop_defaults_of_others, explain_composition

TASK = "mae_ast_pretraining"
# Settings besides sizes that change the training step of a system.
FORMS = ("two_pass", "decoder_attention")


@dataclass(frozen=True)
class Batches:
    """Batches of an epoch, over all GPUs.

    Args:
        clips: number of clips of each batch, (batches,) int64.
        samples: number of samples of each batch at 16 kHz after cropping, without padding,
            (batches,) int64.
        length: samples per clip of the median batch.
    """

    clips: np.ndarray
    samples: np.ndarray
    length: int


@dataclass(frozen=True)
class Plan:
    """Counts of a planned run.

    Args:
        gpus: number of GPUs over all nodes.
        update_freq: batches per GPU and update.
        num_clips: number of clips of the manifests.
        mixture: clips per epoch of each corpus, as a text; empty for a single one.
        clips_skipped: number of them that are too short or fit into no batch.
        batches: batches of an epoch.
        updates: number of updates.
        parameters: number of parameters of the model.
        num_patches, num_masked: patches of a clip of the median batch.
        flops: operations of forward and backward of such a clip.
    """

    gpus: int
    update_freq: int
    num_clips: int
    mixture: str
    clips_skipped: int
    batches: Batches
    updates: int
    parameters: int
    num_patches: int
    num_masked: int
    flops: int

    @property
    def updates_per_epoch(self) -> int:
        """Return the number of updates of an epoch."""
        return math.ceil(math.ceil(len(self.batches.clips) / self.gpus) / self.update_freq)

    @property
    def epochs(self) -> float:
        """Return the number of epochs, with a fraction."""
        return self.updates / self.updates_per_epoch

    @property
    def hours_per_epoch(self) -> float:
        """Return the hours of audio of an epoch."""
        return float(self.batches.samples.sum()) / SAMPLE_RATE / 3600

    @property
    def hours(self) -> float:
        """Return the hours of audio of the run."""
        return self.hours_per_epoch * self.epochs

    @property
    def clips_per_batch(self) -> float:
        """Return the mean number of clips of a batch on one GPU."""
        return float(self.batches.clips.mean())

    @property
    def clips_per_update(self) -> float:
        """Return the mean number of clips of an update over all GPUs."""
        return float(self.batches.clips.sum()) / self.updates_per_epoch


@dataclass(frozen=True)
class Timed:
    """Predicted time of a planned run.

    Args:
        case: description of the measured case.
        scale: operations of a batch of this run over those of the measured case.
        step_s: seconds per batch on one GPU, without the optimizer.
        hours: hours of all updates.
        throughput_ratio: measured throughput of training from files over that with synthetic
            batches; ``None``: not measured.
        workers: data loader workers needed per GPU; ``None``: not measured.
    """

    case: str
    scale: float
    step_s: float
    hours: float
    throughput_ratio: float | None
    workers: float | None


def compose_settings(data: Data, config: str, overrides: Sequence[str]) -> Any:
    """Compose the settings that ``mae-ast pretrain`` uses with the same arguments.

    Raises:
        ValueError: the preset does not exist, or an override is invalid.
    """
    register()
    arguments = train_command(data, config, Path("outputs"), list(overrides))
    folder = Path(arguments[arguments.index("--config-dir") + 1])
    name = arguments[arguments.index("--config-name") + 1]
    file = folder / f"{name}.yaml"
    # Settings of the launch do not affect the plan.
    launching = ("hydra.", "hydra/", "+run_config=", "-")
    given = arguments[arguments.index(name) + 1 :]
    check_preset(file, given)
    wanted = search_path_of(given)
    wanted += [each for each in given if not each.startswith(launching)]
    hydra_init(name)
    try:
        settings = compose_preset(file, wanted)
        drop_defaults_of_others(settings)
        add_defaults(settings)
        OmegaConf.resolve(settings)
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(explain_composition(error, file, given)) from None
    if settings.task._name != TASK:
        raise ValueError(f"task._name={settings.task._name}: must be {TASK}")
    return settings


def make_plan(settings: Any, manifests: Sequence[Path], gpus: int) -> Plan:
    """Count batches, updates, hours and operations of a run.

    Args:
        settings: settings from :func:`compose_settings`.
        manifests: manifests of the training clips, one per corpus.
        gpus: number of GPUs over all nodes.

    Raises:
        FileNotFoundError: a manifest does not exist.
        ValueError: a manifest or the settings are invalid for training.
    """
    task, data = settings.task, settings.dataset
    config = parse_pretraining_config(settings.model, task.mask_type)
    folders = [manifest.parent for manifest in manifests]
    mixture = Mixture.of(folders, task.mixture, task.mixture_temperature)
    rows = read_manifests(manifests)
    rows.probe_rates(bar("reading sample rates", "file"))
    build: Any = PretrainingDataset if mixture is None else partial(MixedDataset, mixture=mixture)
    dataset = build(
        rows,
        Collater(config, task.mask_type, pad=task.pad_audio, random_crop=task.random_crop),
        seed=settings.common.seed,
        shuffle=True,
        min_samples=task.min_sample_size,
        max_keep_samples=task.max_keep_size,
        max_samples=task.max_sample_size,
    )
    if data.max_tokens is None and data.batch_size is None:
        raise ValueError(
            "set dataset.max_tokens or dataset.batch_size: the batch size is unlimited"
        )
    batches, skipped = _batches(dataset, config, task, data)
    set_update_freq(settings, gpus)
    (update_freq, *others) = settings.optimization.update_freq
    if others:
        raise ValueError("optimization.update_freq has several values; a plan supports one")
    updates = planned_updates(settings.optimization, math.ceil(len(batches.clips) / gpus))
    if updates is None:
        raise ValueError(
            "set optimization.max_update or optimization.max_epoch: training has no end"
        )
    mask = draw_mask(config, task.mask_type, batches.length)
    num_masked = mask.masked_ids.shape[1]
    return Plan(
        gpus=gpus,
        update_freq=update_freq,
        num_clips=len(rows),
        mixture="" if mixture is None else dataset.epoch_text(),
        clips_skipped=len(rows) - len(dataset) + skipped,
        batches=batches,
        updates=updates,
        parameters=_num_parameters(config),
        num_patches=mask.visible_ids.shape[1] + num_masked,
        num_masked=num_masked,
        flops=count_flops(config, task.mask_type, batches.length),
    )


def _batches(dataset: Any, config: Any, task: Any, data: Any) -> tuple[Batches, int]:
    """Return the batches that fairseq's trainer forms, and the number of clips without a batch."""
    dataset.set_epoch(1)
    with data_utils.numpy_seed(dataset.seed + 1):
        order = dataset.ordered_indices()
    longest = data.max_tokens
    if longest is not None:
        order, _ = dataset.filter_indices_by_size(order, longest)
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
            f"dataset.required_batch_size_multiple={data.required_batch_size_multiple}: too few "
            "clips for a batch"
        )
    max_samples = np.iinfo(np.int64).max
    if config.input_frames is not None:
        max_samples = num_samples_of_frames(config.input_frames)
    clips = np.array([len(batch) for batch in made])
    sizes = [np.minimum(dataset.num_tokens_vec(np.asarray(batch)), max_samples) for batch in made]
    if task.pad_audio:
        samples = np.array([size.sum() for size in sizes])
        lengths = np.array([size.max() for size in sizes])
    else:
        lengths = np.array([size.min() for size in sizes])
        samples = lengths * clips
    skipped = len(dataset) - int(clips.sum())
    return Batches(clips, samples, int(np.median(lengths))), skipped


def _num_parameters(config: Any) -> int:
    with torch.device("meta"):
        network = SYSTEMS[system_name(config)].network(config)
    return sum(p.numel() for p in network.parameters())


def time_plan(plan: Plan, settings: Any, results: Mapping[str, Any]) -> Timed:
    """Predict the time of a run from a measured step.

    Args:
        plan: plan of the run.
        settings: settings of the run.
        results: results of ``mae-ast bench``.

    Raises:
        ValueError: the results hold no step of this system.
    """
    parts = results["parts"]
    steps = [row for row in parts.get("steps", {}).get("rows", []) if "error" not in row]
    batch_flops = plan.clips_per_batch * plan.flops
    row = _closest_case(batch_flops, settings.model, steps)
    per_s = row["batch"] * row["flops_per_clip"] / max(row["median_s"] - row["optimizer_s"], 1e-9)
    forward_backward_s = batch_flops / per_s
    update_s = plan.update_freq * forward_backward_s + row["optimizer_s"]
    return Timed(
        case=f"{row['name']}, {plural(row['batch'], 'clip')}, {row['precision']}",
        scale=batch_flops / (row["batch"] * row["flops_per_clip"]),
        step_s=forward_backward_s,
        hours=plan.updates * update_s / 3600,
        throughput_ratio=_throughput_ratio(parts),
        workers=_workers_needed(parts, plan.clips_per_batch / forward_backward_s),
    )


def _closest_case(
    batch_flops: float, model: Any, rows: Sequence[Mapping[str, Any]]
) -> Mapping[str, Any]:
    """Return the case of the same system closest in patches, dropout and operations per step."""
    candidates = [
        row
        for row in rows
        if row["system"] == model._name
        and all(row["config"].get(key) == getattr(model, key, None) for key in FORMS)
    ]
    if not candidates:
        known = ", ".join(sorted({row["system"] for row in rows})) or "none"
        raise ValueError(f"the results hold no training step of {model._name}, only of: {known}")

    def distance(row: Mapping[str, Any]) -> tuple[bool, bool, float]:
        config = row["config"]
        other_patches = config["ast_kernel_size_time"] != model.ast_kernel_size_time
        other_dropout = (config["dropout"] > 0) != (model.dropout > 0)
        ratio = math.log(batch_flops / (row["batch"] * row["flops_per_clip"]))
        return other_patches, other_dropout, abs(ratio)

    return min(candidates, key=distance)


def _throughput_ratio(parts: Mapping[str, Any]) -> float | None:
    rows = [row for row in parts.get("training", {}).get("rows", []) if "error" not in row]
    if len(rows) != 2:
        return None
    from_files, synthetic = (row["clips_per_s"] for row in rows)
    return float(min(1.0, from_files / synthetic))


def _workers_needed(parts: Mapping[str, Any], clips_per_s: float) -> float | None:
    rows = [row for row in parts.get("loading", {}).get("rows", []) if "error" not in row]
    rates = [row["clips_per_s_and_worker"] for row in rows if not row["fbank_in_workers"]]
    return clips_per_s / min(rates) if rates else None
