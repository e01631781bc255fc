"""Helpers to train classifiers in tests: tones of three pitches, and tiny pretrained models."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from mae_ast.core.checkpoints.ast_release import write_ssast
from mae_ast.core.checkpoints.audio_mae_release import write_audio_mae
from mae_ast.core.frontend.fbank import fbank
from mae_ast.core.io.labels import Labels, write_clip_labels
from mae_ast.core.models.audio_mae import AudioMae
from mae_ast.core.models.config import AudioMaeConfig, MaeAstConfig, SsastConfig
from mae_ast.core.models.ssast import Ssast
from mae_ast.hub import export
from mae_ast.hub.load import PretrainedMaeAst
from tests.core.vits import with_random_weights

from .conftest import CONFIG_DIR, forget_the_best, write_manifest

PITCHES = {"low": 300, "middle": 1_000, "high": 3_500}  # Hz
LABELS = Labels(tuple(PITCHES), tuple(f"{name} tone" for name in PITCHES))
FINETUNE_DIR = CONFIG_DIR.parent / "finetune"
HERE = (
    "common.cpu=true",
    "common.log_interval=1",
    "common.tensorboard_logdir=null",
    "dataset.num_workers=0",
    "dataset.batch_size=8",
    "lr_scheduler.warmup_updates=0",
    "task.max_sample_size=8000",
)
# The presets' AST made small, with random weights.
TINY_AST = (
    *("model.checkpoint=null", "model.encoder_layers=2", "model.encoder_embed_dim=64"),
    *("model.encoder_ffn_embed_dim=96", "model.encoder_attention_heads=1"),
    *("model.position_frames=64", "model.input_frames=64", "model.precision=float32"),
)
Log = dict[str, list[dict[str, str]]]


def tone(classes: Sequence[int], seconds: float, seed: int) -> np.ndarray:
    """Synthesize a tone of random phase for each class, plus noise: (L,) int16."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * 16_000)) / 16_000
    wave = 0.01 * rng.standard_normal(len(t))
    for c in classes:
        pitch = list(PITCHES.values())[c] * rng.uniform(0.85, 1.15)
        wave += 0.25 * np.sin(2 * np.pi * (pitch * t + rng.uniform()))
    return (wave * 32767).astype(np.int16)


def write_tones(folder: Path, split: str, classes: Sequence[Sequence[int]], seed: int = 0) -> None:
    """Write clips of 0.3 to 0.5 s, their manifest and labels."""
    rows = []
    for number, some in enumerate(classes):
        seconds = 0.3 + 0.2 * np.random.default_rng(seed + number).uniform()
        name = f"{split}_{number:02d}.flac"
        samples = tone(some, seconds, seed + number)
        soundfile.write(folder / name, samples, 16_000)
        rows.append((name, len(samples), 16_000))
    write_manifest(folder / f"{split}.tsv", rows)
    write_clip_labels(folder / f"{split}.lbl", [[LABELS.mids[c] for c in some] for some in classes])


def write_corpus(folder: Path, multi_label: bool = False) -> Path:
    """Write 24 training clips, or 36 if multi-label, and 9 validation clips."""
    folder.mkdir(parents=True, exist_ok=True)
    LABELS.write(folder / "labels.csv")
    one = [[c] for c in range(3)]
    two = [[0, 1], [0, 2], [1, 2]]
    write_tones(folder, "train", (one + two) * 6 if multi_label else one * 8)
    write_tones(folder, "valid", one * 2 + (two if multi_label else one), seed=1_000)
    return folder


def write_pretrained(path: Path) -> Path:
    """Write a tiny model in the released layout, with the input statistics of the tones."""
    torch.manual_seed(3)
    log_mel = fbank(torch.from_numpy(np.stack([tone([c], 0.5, c) for c in range(3)])))
    config = MaeAstConfig(
        encoder_layers=2,
        encoder_embed_dim=32,
        encoder_ffn_embed_dim=64,
        encoder_attention_heads=4,
        decoder_layers=1,
        decoder_embed_dim=32,
        input_mean=float(log_mel.mean()),
        input_std=float(log_mel.std()),
    )
    export.to_released_file(PretrainedMaeAst(config, "chunk_mask"), path)
    return path


def tiny_ssast() -> Ssast:
    """Build an SSAST with random weights and its own input statistics."""
    config = SsastConfig(
        encoder_layers=2,
        encoder_embed_dim=64,
        encoder_ffn_embed_dim=96,
        encoder_attention_heads=1,
        position_frames=128,
        input_frames=128,
    )
    return with_random_weights(Ssast(config)).eval()


def write_tiny_audio_mae(path: Path) -> Path:
    """Write a tiny Audio-MAE with random weights in the published layout."""
    config = AudioMaeConfig(
        encoder_layers=2,
        encoder_embed_dim=64,
        encoder_ffn_embed_dim=96,
        encoder_attention_heads=1,
        decoder_layers=1,
        decoder_embed_dim=32,
        decoder_ffn_embed_dim=32,
        decoder_attention="global",
    )
    model = with_random_weights(AudioMae(config))
    torch.save(write_audio_mae(config, model.state_dict()), path)
    return path


def write_tiny_ssast(path: Path) -> Path:
    """Write :func:`tiny_ssast` in the published layout."""
    model = tiny_ssast()
    torch.save(write_ssast(model.config, model.state_dict()), path)
    return path


def finetune_here(
    caplog: pytest.LogCaptureFixture, preset: str, data: Path, *overrides: str
) -> Log:
    """Fine-tune in this process, which ``train_here`` has prepared, and return the log."""
    import fairseq_cli.train
    from fairseq.dataclass.initialize import hydra_init
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    forget_the_best()
    hydra_init(preset)  # registers the schema under the preset's name
    with initialize_config_dir(str(FINETUNE_DIR), version_base="1.1"):
        cfg = compose(preset, overrides=[f"task.data={data}", *HERE, *overrides])
    cfg = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True, enum_to_str=True))
    OmegaConf.set_struct(cfg, True)
    caplog.set_level(logging.INFO)
    caplog.clear()
    fairseq_cli.train.main(cfg)
    return {
        name: [json.loads(r.getMessage()) for r in caplog.records if r.name == name]
        for name in ("train_inner", "train", "valid")
    }
