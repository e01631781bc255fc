"""Fixtures: a tiny checkpoint, and tiny data in the layouts of the SUPERB tasks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch

from mae_ast.core.models.config import MaeAstConfig
from mae_ast.core.models.mae_ast import MaeAst
from mae_ast.prepare.origins import KS_WORDS
from mae_ast.superb.tasks import KS_TEST, KS_TRAIN
from tests.sounds import speech_like

pytest.importorskip("s3prl.upstream.interfaces", reason="needs s3prl")


def write_checkpoint(path: Path, config: MaeAstConfig) -> Path:
    """Write a pretraining checkpoint with random weights and plausible input statistics."""
    torch.manual_seed(1)
    model = MaeAst(config)
    model.batch_norm.running_mean.fill_(-8.0)
    model.batch_norm.running_var.fill_(16.0)
    cfg = {
        "model": {"_name": "mae_ast", **dataclasses.asdict(config)},
        "task": {"mask_type": "random_mask"},
    }
    torch.save({"cfg": cfg, "model": model.state_dict()}, path)
    return path


@pytest.fixture
def checkpoint(tmp_path: Path, small_config: Callable[..., MaeAstConfig]) -> Callable[..., Path]:
    """Return ``checkpoint(kernel, **fields)``, which writes a checkpoint of a narrow model."""

    def write(kernel: tuple[int, int] = (16, 16), **fields: Any) -> Path:
        return write_checkpoint(tmp_path / "tiny.pt", small_config(kernel, **fields))

    return write


def write_wav(path: Path, seconds: float, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = speech_like(round(16_000 * seconds), seed)
    soundfile.write(path, wave.numpy(), 16_000, subtype="PCM_16")


def write_speech_commands(folder: Path) -> Path:
    """Write a training and a dev clip per word: s3prl splits by a hash of the speaker's name."""
    train, test = folder / KS_TRAIN, folder / KS_TEST
    for number, word in enumerate((*KS_WORDS, "bed", "zero")):
        for turn, speaker in enumerate(("0a7c2a8d", "1a7c2a8d")):
            write_wav(train / word / f"{speaker}_nohash_0.wav", 0.5 + 0.5 * turn, 2 * number + turn)
    write_wav(train / "_background_noise_" / "pink_noise.wav", 2.0, 90)
    (train / "validation_list.txt").write_text("bed/0a7c2a8d_nohash_0.wav\n")
    (train / "testing_list.txt").write_text("")
    for number, word in enumerate((*KS_WORDS, "_unknown_", "_silence_")):
        write_wav(test / word / "988e2f9a_nohash_0.wav", 1.0, 50 + number)
    return folder


def write_voxceleb(folder: Path) -> Path:
    """Write clips of three speakers, two in the dev archive and one in the test archive."""
    rows = []
    for number, split in enumerate((1, 1, 2, 3, 1, 2)):
        archive, speaker = (
            ("test", "id10270") if number % 3 == 2 else ("dev", f"id1000{number % 3 + 1}")
        )
        clip = f"{speaker}/1zcIwhmdeo4/0000{number}.wav"
        write_wav(folder / archive / "wav" / clip, 0.6 + 0.3 * number, number)
        rows.append(f"{split} {clip}\n")
    (folder / "iden_split.txt").write_text("".join(rows))
    return folder


def write_iemocap(folder: Path) -> Path:
    """Write two dialogues per session: a turn of each emotion, and one of an unused emotion."""
    for session in range(1, 6):
        for kind in ("impro01", "script02_1"):
            dialogue = f"Ses0{session}F_{kind}"
            lines = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n"]
            for turn, emotion in enumerate(("neu", "exc", "ang", "sad", "fru")):
                clip = f"{dialogue}_M{turn:03d}"
                wav = folder / f"Session{session}/sentences/wav/{dialogue}/{clip}.wav"
                write_wav(wav, 0.5 + 0.1 * turn, 10 * session + turn)
                lines.append(f"[6.2901 - 8.2357]\t{clip}\t{emotion}\t[2.5000, 2.5000, 2.5000]\n")
                lines.append("C-E2:\tNeutral;\t()\n")
            label = folder / f"Session{session}/dialog/EmoEvaluation/{dialogue}.txt"
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text("".join(lines))
            label.with_name(f"._{label.name}").write_bytes(b"\x00\x05\x16\x07\xff")
    return folder
