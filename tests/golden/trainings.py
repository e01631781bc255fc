"""The trainings whose numbers are kept, as arguments of ``mae-ast``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
HEADS = json.loads(Path(__file__).with_name("heads.json").read_text())
PRETRAINING_UPDATES, FINETUNING_UPDATES = 20, 10
PRETRAINING_STOP, FINETUNING_STOP = 9, 5  # within an epoch of 6 and of 3 updates

SMALL = (
    *("model.encoder_layers=2", "model.encoder_embed_dim=20"),
    *("model.encoder_ffn_embed_dim=40", "model.encoder_attention_heads=2"),
)
HERE = (
    *("common.cpu=true", "common.seed=7", "common.log_interval=1"),
    *("common.tensorboard_logdir=null", "model.precision=float32", "dataset.num_workers=0"),
    *("dataset.validate_interval=1000", "dataset.validate_interval_updates=0"),
    *("checkpoint.save_interval_updates=0", "checkpoint.no_epoch_checkpoints=true"),
)
NO_DROPOUT = (
    *("model.dropout=0", "model.attention_dropout=0", "model.activation_dropout=0"),
    "model.encoder_layerdrop=0",
)
PRETRAINING = (
    *("dataset.batch_size=2", f"optimization.max_update={PRETRAINING_UPDATES}"),
    *("optimization.lr=[0.0005]", "lr_scheduler.warmup_updates=4"),
    *("task.min_sample_size=8000", "task.max_sample_size=16000"),
)
MAE_AST = (
    "model.decoder_layers=1",
    "model.decoder_embed_dim=16",
    "model.decoder_attention_heads=2",
)
FRAMES = (
    *("model.ast_kernel_size_time=2", "model.ast_kernel_stride_time=2"),
    *("model.ast_kernel_size_chan=128", "model.ast_kernel_stride_chan=128"),
    *("task.mask_type=retain_spans", "model.random_mask_prob=0.74"),
)
AUDIO_MAE = (
    *("model.decoder_layers=2", "model.decoder_embed_dim=16"),
    *("model.decoder_ffn_embed_dim=32", "model.decoder_attention_heads=2"),
)
# Preset and settings of each. Only that with frames keeps the preset's dropout and layerdrop.
PRETRAINED = {
    "mae_ast": ("mae_ast", (*MAE_AST, *NO_DROPOUT, "model.dropout_input=0")),
    "mae_ast_frames": ("mae_ast", (*MAE_AST, *FRAMES)),
    "ssast": ("ssast_patch", (*NO_DROPOUT, "model.position_frames=96")),
    "audio_mae": ("audio_mae", (*AUDIO_MAE, *NO_DROPOUT)),
}
FINETUNING = (
    *("dataset.batch_size=4", "optimization.max_epoch=0"),
    *(f"optimization.max_update={FINETUNING_UPDATES}", "optimization.lr=[0.0005]"),
    *("lr_scheduler.warmup_updates=0", "task.max_sample_size=16000"),
    *NO_DROPOUT,
)
# Preset, starting point among the stored files, and settings of each.
FINETUNED = {
    "mae_ast": ("esc50", "pretraining/mae_ast", ()),
    "ssast": ("ssast_esc50", "released/ssast.pth", ("model.input_frames=96",)),
    "ast": (
        "ast_esc50",
        "start/timm.pth",
        (*SMALL, "model.position_frames=96", "model.input_frames=96"),
    ),
    "audio_mae": ("audio_mae_esc50", "pretraining/audio_mae", ("model.input_frames=96",)),
}


def pretrain(root: Path, system: str, out: str, *more: str, data: str = "data") -> list[str]:
    """Arguments that pretrain ``system``, into ``root / out``."""
    preset, settings = PRETRAINED[system]
    given = (*HERE, *PRETRAINING, *SMALL, *settings, *more)
    return ["pretrain", str(root / data), "--config", preset, "--out", str(root / out), *given]


def finetune(root: Path, system: str, out: str, *more: str) -> list[str]:
    """Arguments that fine-tune ``system``, into ``root / out``."""
    preset, start, settings = FINETUNED[system]
    places = [str(root / start), str(root / "data"), "--config", preset, "--out", str(root / out)]
    return ["finetune", *places, *HERE, *FINETUNING, *settings, *more]


def run(root: Path, jobs: dict[str, list[str]], **stop_at: int) -> dict[str, Any]:
    """Run trainings one after the other, on one thread.

    Args:
        root: folder of data, stored files and runs; gets logs and records.
        jobs: per name the arguments of ``mae-ast``.
        stop_at: per name an update during which the training is asked to stop.

    Returns:
        Per name the lists ``update``, ``loss``, ``gnorm``, ``masked`` and ``valid``.
    """
    logs = root / "logs"
    logs.mkdir(exist_ok=True)
    listed = [
        {
            "arguments": arguments,
            "log": str(logs / f"{name}.log"),
            "record": str(logs / f"{name}.json"),
            "stop_at": stop_at.get(name),
            "head": HEADS.get(name.removeprefix("finetune_")) if "finetune_" in name else None,
        }
        for name, arguments in jobs.items()
    ]
    (logs / "jobs.json").write_text(json.dumps(listed))
    command = [sys.executable, "-m", "tests.golden.driver", str(logs / "jobs.json")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise AssertionError(done.stderr[-4000:])
    return {job["log"].rpartition("/")[2][:-4]: _read(Path(job["record"])) for job in listed}


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"update": [], "loss": [], "gnorm": [], "masked": [], "valid": []}
    for line in path.read_text().splitlines():
        for key, value in json.loads(line).items():
            found[key].append(value)
    return found


def without_padding(masked: Sequence[dict[str, list[int]]]) -> list[dict[str, list[int]]]:
    """Masked patches by clip, for each update."""
    return [{clip: [i for i in ids if i >= 0] for clip, ids in each.items()} for each in masked]
