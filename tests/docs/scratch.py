"""Scratch folder with files under the names that the documentation uses: small audio and models.

``/data/...`` in the documentation is ``data/...`` here.

    speech.flac music.mp3 dog.wav day.wav   recordings
    clips/                               a folder of recordings
    data/my-audio, data/ESC-50, ...      data sets
    data/my-sounds, data/recordings      labelled recordings: class folders, and a table of segments
    manifests/                           train and valid, with labels
    model.pt, runs/patch, demo/run, ...  small models; fold1, my-sounds, events are classifiers
    cache/                               the released model mae_ast_patch
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import os
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import soundfile
import torch

from mae_ast.core.checkpoints.classifier import ClassifierSpec
from mae_ast.core.io.labels import Labels, write_clip_labels
from mae_ast.core.io.manifest import write_manifest
from mae_ast.core.models.classifier import Classifier, HeadConfig
from mae_ast.core.models.config import AstConfig, MaeAstConfig
from mae_ast.core.models.encoder import encoder_only
from mae_ast.core.models.mae_ast import MaeAst
from mae_ast.hub.load import PretrainedAst, PretrainedMaeAst
from mae_ast.hub.registry import RELEASED
from tests.sounds import pcm16, speech_like

REPOSITORY = Path(__file__).parents[2]
RATE = 16_000
LABELS = Labels(("dog", "rain"), ("dog", "rain"))  # those of ESC-50 below
SIZES = {"embed_dim": 32, "ffn_embed_dim": 64, "attention_heads": 4}
CONFIG = MaeAstConfig(
    encoder_layers=9,  # pages ask for layer 9
    decoder_layers=1,
    **{f"{part}_{key}": size for part in ("encoder", "decoder") for key, size in SIZES.items()},
)

Run = Callable[..., None]  # the command, given its arguments


def make(folder: Path, run: Run) -> None:
    """Make everything.

    Args:
        folder: empty.
        run: runs ``mae-ast`` in this folder.
    """
    torch.manual_seed(0)
    _make_audio(folder)
    _make_labelled_audio(folder)
    _make_manifests(folder)
    _make_models(folder, run)
    (folder / "benchmarks").mkdir()
    for name in ("s3prl", "benchmarks/results", "config"):
        (folder / name).symlink_to(REPOSITORY / name)


def _record(path: Path, seconds: float, seed: int) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = pcm16(_voice()).roll(1_000 * seed)[: round(seconds * RATE)]
    soundfile.write(path, samples.numpy(), RATE)
    return len(samples)


@cache
def _voice() -> torch.Tensor:
    return speech_like(3 * RATE)


def _make_audio(folder: Path) -> None:
    _record(folder / "speech.flac", 3, 1)
    _record(folder / "music.mp3", 2.5, 2)
    _record(folder / "dog.wav", 1, 3)
    _record(folder / "day.wav", 17, 4)
    for number in range(6):
        _record(folder / "clips" / f"{number}.flac", 1, 10 + number)
    for number in range(16):
        site = "train-sites" if number % 4 else "held-out-sites"
        _record(folder / "data" / "my-audio" / site / f"{number}.wav", 2.1, 20 + number)
    _record(folder / "data" / "more-audio" / "0.wav", 2.1, 60)
    esc50 = folder / "data" / "ESC-50"
    rows = []
    for fold in range(1, 6):
        for target, category in enumerate(("dog", "rain")):
            name = f"{fold}-{target}.wav"
            _record(esc50 / "audio" / name, 0.5, 70 + 2 * fold + target)
            rows.append((name, fold, target, category))
    (esc50 / "meta").mkdir()
    with (esc50 / "meta" / "esc50.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("filename", "fold", "target", "category"), *rows])


def _make_labelled_audio(folder: Path) -> None:
    for number in range(20):
        name = f"garden{number % 5}_{number:02}.wav"
        _record(folder / "data" / "my-sounds" / LABELS.mids[number % 2] / name, 0.5, 120 + number)
    recordings = folder / "data" / "recordings"
    rows = []
    for number in range(6):
        name = f"{number}.flac"
        _record(recordings / name, 2, 150 + number)
        rows += [(name, "dog", 0.5, 1), (name, "dog;rain", 1, ""), (name, "rain", "", 0.5)]
    with (recordings / "events.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "start", "end"), *rows])


def _make_manifests(folder: Path) -> None:
    _write_split(folder / "manifests", "train", 12)
    _write_split(folder / "manifests", "valid", 4)
    for fold in (1, 2):
        _write_split(folder / "manifests" / "esc50" / f"fold{fold}", "train", 4)
        _write_split(folder / "manifests" / "esc50" / f"fold{fold}", "valid", 2)


def _write_split(folder: Path, split: str, num_clips: int) -> None:
    rows = []
    for number in range(num_clips):
        name = f"{split}_{number}.flac"
        rows.append((name, _record(folder / "audio" / name, 2.1, 100 + number), RATE))
    write_manifest(folder / f"{split}.tsv", str(folder / "audio"), rows)
    mids = [(LABELS.mids[number % 2],) for number in range(num_clips)]
    write_clip_labels(folder / f"{split}.lbl", mids)
    LABELS.write(folder / "labels.csv")


def _make_models(folder: Path, run: Run) -> None:
    model = PretrainedMaeAst(CONFIG, "chunk_mask")
    model.save_pretrained(folder / "hub")
    run("convert", "hub", "model.pt", "--to", "released")
    for name in ("runs/patch", "runs/first", "demo/run"):
        _save_run(folder / name, model)
    for name in ("fold1", "my-sounds", "events"):
        _save_classifier(folder / "runs" / name)
    released = folder / "cache" / RELEASED["mae_ast_patch"].file_name
    released.parent.mkdir()
    os.link(folder / "model.pt", released)
    checksum = hashlib.sha256(released.read_bytes()).hexdigest()
    released.with_name(f"{released.name}.sha256").write_text(f"{checksum}  {released.name}\n")
    ast = AstConfig(
        encoder_layers=2,
        encoder_embed_dim=64,
        encoder_ffn_embed_dim=256,
        encoder_attention_heads=1,
        num_classes=3,
    )
    PretrainedAst(ast, labels=("a", "b", "c")).save_pretrained(folder / "ast")
    run("convert", "ast", "audioset_10_10_0.4593.pth", "--to", "released")


def _save(path: Path, state: dict[str, object]) -> None:
    path.parent.mkdir(parents=True)
    torch.save({"optimizer_history": [{"num_updates": 100}], **state}, path)


def _save_run(folder: Path, model: MaeAst) -> None:
    """Save a checkpoint as pretraining does, without the optimizer."""
    cfg = {
        "model": {"_name": "mae_ast", **dataclasses.asdict(model.config)},
        "task": {"_name": "mae_ast_pretraining", "mask_type": "chunk_mask"},
    }
    path = folder / "checkpoints" / "checkpoint_last.pt"
    _save(path, {"cfg": cfg, "model": model.state_dict()})


def _save_classifier(folder: Path, mids: Sequence[str] = LABELS.mids) -> None:
    """Save a checkpoint as fine-tuning does, without the optimizer."""
    head = HeadConfig(len(mids), pool="tokens")
    model = Classifier(encoder_only(MaeAst(CONFIG)), head)
    spec = ClassifierSpec(CONFIG, head, LABELS, False, False, 2 * RATE)
    path = folder / "checkpoints" / "checkpoint_last.pt"
    state = {"task_state": {"mae_ast_classification": spec.to_dict()}, "cfg": {}}
    _save(path, {**state, "model": model.state_dict()})
