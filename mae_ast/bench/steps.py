"""Measure training steps at full width.

They vary in batch size, clip length, mask ratio, batching (cropped, packed) and compilation.

A step consists of the filterbank (on a GPU; on a CPU it runs in the data loader's workers),
forward, losses, backward and AdamW. Masks are drawn beforehand, as in the data loader.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor, nn

from mae_ast.bench.machine import peak_memory
from mae_ast.bench.setting import Case, Column, Part, Row, Setting
from mae_ast.bench.stopwatch import matrix_rate, measure, summary
from mae_ast.bench.work import (
    NO_DROPOUT,
    count_activations,
    count_flops,
    draw_mask,
    peak_bytes,
    pretraining_loss,
)
from mae_ast.core.frontend.collate import Clip, Collater
from mae_ast.core.frontend.collate_rows import RowCollater
from mae_ast.core.frontend.fbank import fbank, num_frames
from mae_ast.core.frontend.masking import MaskIds
from mae_ast.core.frontend.rows import RowShape
from mae_ast.core.io.audio import SAMPLE_RATE
from mae_ast.core.models.registry import SYSTEMS, parse_config, system_name
from mae_ast.core.nn.malloc import keep_freed_memory
from mae_ast.core.nn.precision import has_bfloat16_units
from mae_ast.core.nn.transformer import compile_layers
from mae_ast.trainer.command import config_dir
from mae_ast.trainer.presets import read_preset

OUT_OF_MEMORY = "out of memory"
CLIP_S = 10.0
LENGTHS_S = (1, 2, 5, 10, 20, 30, 60, 120)
RATIOS = (0.5, 0.6, 0.75, 0.9)
FRAMES = {
    "ast_kernel_size_chan": 128,
    "ast_kernel_stride_chan": 128,
    "ast_kernel_size_time": 2,
    "ast_kernel_stride_time": 2,
}
# Name, preset, changes to the preset, mask type.
SYSTEM_CASES: tuple[tuple[str, str, dict[str, Any], str], ...] = (
    ("MAE-AST patch, 12 layers", "mae_ast", {}, "chunk_mask"),
    ("MAE-AST patch, 12 layers, dropout 0", "mae_ast", NO_DROPOUT, "chunk_mask"),
    ("MAE-AST patch, 6 layers", "mae_ast", {"encoder_layers": 6}, "chunk_mask"),
    ("MAE-AST frame, 12 layers", "mae_ast", FRAMES, "random_mask"),
    ("MAE-AST frame, 6 layers", "mae_ast", {**FRAMES, "encoder_layers": 6}, "random_mask"),
    ("SSAST patch, 12 layers, one pass", "ssast_patch", {}, "chunk_mask"),
    ("SSAST patch, 12 layers, two passes", "ssast_patch", {"two_pass": True}, "chunk_mask"),
    ("Audio-MAE, 12 layers, local decoder", "audio_mae", {}, "random_mask"),
    (
        "Audio-MAE, 12 layers, global decoder",
        "audio_mae",
        {"decoder_attention": "global"},
        "random_mask",
    ),
)
FORMS = ("eager", "compiled")
QUICK = {
    "encoder_layers": 2,
    "encoder_embed_dim": 64,
    "encoder_ffn_embed_dim": 128,
    "encoder_attention_heads": 4,
    "decoder_layers": 1,
    "decoder_embed_dim": 64,
}


def step_cases(setting: Setting) -> list[Case]:
    """Return a case for each system and batch size."""
    clip_s = 2.0 if setting.quick else CLIP_S
    return [
        {
            "name": name,
            "preset": preset,
            "model": model,
            "mask_type": mask_type,
            "batch": batch,
            "clip_s": clip_s,
        }
        for name, preset, model, mask_type in SYSTEM_CASES
        for batch in setting.batches
    ]


def length_cases(setting: Setting) -> list[Case]:
    """Return cases of the 12-layer patch model over clip lengths and over mask ratios.

    The model has no dropout and, on a CPU, runs in float32: only then is its attention fused there.
    """
    name, preset, model, _ = SYSTEM_CASES[1]
    if setting.precision == "auto" and not setting.is_gpu:
        model = {**model, "precision": "float32"}
    batch = int(setting.pick(cpu=1, gpu=32, quick=1))
    lengths, ratios = (LENGTHS_S[:1], RATIOS[:1]) if setting.quick else (LENGTHS_S, RATIOS)
    fixed = {"preset": preset, "mask_type": "random_mask", "batch": batch}
    over_length = [
        {"name": f"{length} s", "sweep": "length", "model": model, "clip_s": float(length)}
        for length in lengths
    ]
    over_ratio = [
        {
            "name": f"{ratio:.0%} masked",
            "sweep": "ratio",
            "model": {**model, "random_mask_prob": ratio},
            "clip_s": 2.0 if setting.quick else CLIP_S,
        }
        for ratio in ratios
    ]
    return [{**case, **fixed, "system": name} for case in (*over_length, *over_ratio)]


def form_cases(setting: Setting) -> list[Case]:
    """Return cases of patches and frames, cropped and packed, eager and compiled, without dropout.

    All clips have one length, so that both batches hold the same audio.
    """
    forms = [(batching, form) for batching in ("cropped", "packed") for form in FORMS]
    networks = {"patch": ({}, "chunk_mask"), "frame": (FRAMES, "random_mask")}
    cases = [
        {
            "name": f"MAE-AST {name}, 12 layers",
            "preset": "mae_ast",
            "model": {**model, **NO_DROPOUT},
            "mask_type": mask_type,
            "batch": int(setting.pick(cpu=4, gpu=64, quick=2)),
            "clip_s": 2.0 if setting.quick else CLIP_S,
            "batching": batching,
            "form": form,
        }
        for name, (model, mask_type) in networks.items()
        for batching, form in forms
    ]
    return [cases[0], cases[-1]] if setting.quick else cases


def measure_step(case: Case, setting: Setting) -> Row:
    """Measure time, memory and speed of a training step."""
    try:
        return _measure_step(case, setting)
    except torch.OutOfMemoryError:
        return {**case, "error": OUT_OF_MEMORY}
    finally:
        if setting.is_gpu:
            torch.cuda.empty_cache()


@dataclasses.dataclass(frozen=True)
class _Training:
    """Model, input and optimizer of a training step.

    Args:
        model: model in train mode.
        source: waveforms (B, L) on a GPU, log-mel (B, T, F) on a CPU.
        lengths: valid frames (1,) of a row; ``None``: no row.
        mask: mask of the batch.
        optimizer: optimizer of the model.
    """

    model: nn.Module
    source: Tensor
    lengths: Tensor | None
    mask: MaskIds
    optimizer: torch.optim.Optimizer

    def backward(self) -> None:
        """Run forward and backward."""
        pretraining_loss(self.model, self.source, self.mask, self.lengths).backward()

    def step(self) -> None:
        """Run a whole training step."""
        self.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def _prepare(case: Case, config: Any, setting: Setting) -> _Training:
    torch.manual_seed(0)
    device, batch = setting.device, case["batch"]
    model = SYSTEMS[system_name(config)].network(config).to(device).train()
    if case.get("form") == "compiled":
        compile_layers(model)
    waveforms = torch.randint(-8000, 8000, (batch, _num_samples(case)), dtype=torch.int16)
    if case.get("batching") == "packed":
        source, lengths, mask = _row_of(waveforms, config, case["mask_type"], not setting.is_gpu)
    else:
        source, lengths = waveforms if setting.is_gpu else fbank(waveforms), None
        mask = draw_mask(config, case["mask_type"], _num_samples(case), batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    lengths = None if lengths is None else lengths.to(device)
    return _Training(model, source.to(device), lengths, mask.to(device), optimizer)


def _row_of(
    waveforms: Tensor, config: Any, mask_type: str, compute_fbank: bool
) -> tuple[Tensor, Tensor | None, MaskIds]:
    """Pack waveforms (B, L) into a row; return its source, valid frames and mask."""
    shape, num_clips = config.patch_shape, len(waveforms)
    steps = num_clips * shape.grid(num_frames(waveforms.shape[1]))[0]
    collater = Collater(config, mask_type, compute_fbank=compute_fbank)
    row = RowCollater(collater, RowShape(steps, num_clips, shape, config.random_mask_prob))
    packed = row([Clip.of(n, wave, seed=1, epoch=1) for n, wave in enumerate(waveforms)])
    return packed.source, packed.lengths, packed.mask


def _measure_step(case: Case, setting: Setting) -> Row:
    device, batch = setting.device, case["batch"]
    config = build_config(case["preset"], {**case["model"], **setting.model}, setting)
    bfloat16 = uses_bfloat16(config.precision, device)
    products = (
        device,
        torch.bfloat16 if bfloat16 else torch.float32,
        256 if setting.quick else None,
    )
    rate = matrix_rate(*products)
    if setting.is_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        base = torch.cuda.memory_allocated() / 2**30
    else:
        keep_freed_memory()
        base = peak_memory()

    training = _prepare(case, config, setting)
    training.step()  # initializes libraries and the moments of the optimizer
    budget = setting.pick(cpu=15, gpu=3, quick=0.05)
    taken = measure(training.step, budget)
    peak = torch.cuda.max_memory_allocated() / 2**30 if setting.is_gpu else peak_memory()
    training.backward()
    update = measure(training.optimizer.step, budget / 10)
    rate = max(rate, matrix_rate(*products))  # a shared machine may have been slow at first

    clip = config, case["mask_type"], _num_samples(case)
    flops = count_flops(*clip)
    activations = count_activations(*clip, bfloat16)
    parameters = sum(p.numel() for p in training.model.parameters())
    flops_per_s = batch * flops / taken.median
    return {
        **case,
        **summary(taken),
        "system": system_name(config),
        "config": dataclasses.asdict(config),
        "precision": "bfloat16" if bfloat16 else "float32",
        "clips_per_s": batch / taken.median,
        "ms_per_clip": 1000 * taken.median / batch,
        "optimizer_s": update.median,
        "num_patches": math.prod(config.patch_shape.grid(num_frames(_num_samples(case)))),
        "parameters": parameters,
        "flops_per_clip": flops,
        "flops_per_s": flops_per_s,
        "matrix_flops_per_s": rate,
        "share_of_matrix_rate": flops_per_s / rate,
        "peak_gib": peak,
        "base_gib": base,
        "predicted_peak_gib": base + peak_bytes(parameters, activations, batch, bfloat16) / 2**30,
    }


def _num_samples(case: Case) -> int:
    return round(float(case["clip_s"]) * SAMPLE_RATE)


def build_config(preset: str, model: dict[str, Any], setting: Setting) -> Any:
    """Build the configuration of a preset's model, with changes.

    Raises:
        ValueError: the configuration is invalid.
    """
    values = read_model(preset)
    system = values.pop("_name")
    fields = {f.name: f for f in dataclasses.fields(SYSTEMS[system].config)}
    changes = {**(QUICK if setting.quick else {}), "precision": setting.precision, **model}
    values.update({key: value for key, value in changes.items() if key in fields})
    for key, value in values.items():
        if key in fields and fields[key].type is float:
            values[key] = float(value)
    return parse_config({"_name": system, **values})


def read_model(preset: str) -> dict[str, Any]:
    """Read the model's settings of a preset of ``config/pretrain``."""
    model: dict[str, Any] = read_preset(config_dir() / "pretrain" / f"{preset}.yaml")["model"]
    return model


def check_overrides(overrides: dict[str, Any]) -> None:
    """Check that each override is a setting of some model.

    Raises:
        ValueError: no model has the key.
    """
    presets = {preset for _, preset, _, _ in SYSTEM_CASES}
    systems = {read_model(preset)["_name"] for preset in presets}
    known = {f.name for name in systems for f in dataclasses.fields(SYSTEMS[name].config)}
    for key in overrides:
        if key not in known:
            raise ValueError(f"model.{key}: no model has such a setting")


def uses_bfloat16(precision: str, device: str) -> bool:
    """Return whether the transformers run in bfloat16."""
    return precision == "bfloat16" or (precision == "auto" and has_bfloat16_units(device))


_COLUMNS = (
    Column("", "name"),
    Column("clips", "batch", "d"),
    Column("dtype", "precision"),
    Column("ms/step", "median_s", ".1f", 1000),
    Column("clips/s", "clips_per_s", ".1f"),
    Column("peak (GiB)", "peak_gib", ".2f"),
    Column("counted (GiB)", "predicted_peak_gib", ".2f"),
    Column("GFLOP/clip", "flops_per_clip", ".0f", 1e-9),
    Column("TFLOP/s", "flops_per_s", ".2f", 1e-12),
    Column("of the matrix rate", "share_of_matrix_rate", ".1%"),
)

STEPS = Part(
    "Training steps",
    "Forward, losses, backward and AdamW on clips of 10 s, with the settings of the presets; "
    "medians. The matrix rate is measured in the same process with the same dtype.",
    step_cases,
    measure_step,
    _COLUMNS,
    lambda setting: setting.pick(cpu=25, gpu=5, quick=0.5),
    is_alone=True,
)
PACKING = Part(
    "Packed and compiled steps",
    "Steps of MAE-AST, 12 + 2 layers, dropout 0, on clips of 10 s: in a batch of clips (cropped) "
    "or side by side in a row (packed), eager or with compiled layers. Compilation is not timed.",
    form_cases,
    measure_step,
    (_COLUMNS[0], Column("batch", "batching"), Column("layers", "form"), *_COLUMNS[1:]),
    lambda setting: setting.pick(cpu=45, gpu=15, quick=10),
    is_alone=True,
)
LENGTHS = Part(
    "Clip lengths and mask ratios",
    "Steps of MAE-AST patch, 12 + 2 layers, dropout 0, random masks.",
    length_cases,
    measure_step,
    _COLUMNS,
    lambda setting: setting.pick(cpu=25, gpu=5, quick=0.5),
    is_alone=True,
)
