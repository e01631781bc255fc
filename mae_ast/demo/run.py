"""The demo from nothing to pictures: corpus, pretraining, evaluation."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import typer
from tqdm import tqdm

import mae_ast
from mae_ast import pictures
from mae_ast.core.audio import read_audio
from mae_ast.core.batch import Clip, Collater
from mae_ast.core.manifest import Manifest
from mae_ast.core.reconstruct import reconstruct
from mae_ast.demo.corpus import make_corpus
from mae_ast.demo.evaluate import Scores, evaluate
from mae_ast.pretrained import PretrainedMaeAst
from mae_ast.progress import bar
from mae_ast.train_command import train_command

SHOWN_WORDS = ("marvin", "seven", "sheila", "yes")
_JSON_LINE = re.compile(r"\]\[(train_inner|train|valid)\]\[INFO\] - (\{.*\})")


def run_demo(folder: Path, updates: int, takes: int) -> Scores:
    """Run all of it; what is already there is not made again.

    Args:
        folder: for corpus, run and results.
        updates: training steps.
        takes: times that each voice says each word.
    """
    jobs = os.cpu_count() or 1
    corpus, run = folder / "corpus", folder / "run"
    corpus.mkdir(parents=True, exist_ok=True)
    make_corpus(corpus, takes, jobs, bar("speaking", "voice"))

    started = time.monotonic()
    history = train(corpus, run, updates)
    minutes = (time.monotonic() - started) / 60

    model = mae_ast.load(run / "checkpoints" / "checkpoint_last.pt")
    train_set, valid_set = Manifest.load(corpus / "train.tsv"), Manifest.load(corpus / "valid.tsv")
    scores = evaluate(model, train_set, valid_set)
    _draw(model, valid_set, folder / "reconstruction.png")
    pictures.loss_figure(history).savefig(folder / "loss.png", dpi=120)
    table = _table(scores, updates, minutes)
    (folder / "results.md").write_text(table, encoding="utf-8")
    typer.echo(table)
    typer.echo(f"pictures: {folder / 'reconstruction.png'}, {folder / 'loss.png'}")
    return scores


def train(corpus: Path, run: Path, updates: int) -> list[dict[str, Any]]:
    """Pretrain with fairseq, showing progress; the values that it logged.

    Raises:
        SystemExit: training failed; the message names its log.
    """
    run.mkdir(parents=True, exist_ok=True)
    history_file, log_file = run / "history.jsonl", run / "train.log"
    command = train_command(corpus, "demo", run, [f"optimization.max_update={updates}"])
    environment = {**os.environ, "HYDRA_FULL_ERROR": "1", "PYTHONUNBUFFERED": "1"}
    is_new = not (run / "checkpoints" / "checkpoint_last.pt").exists()
    with (
        log_file.open("a") as log,
        history_file.open("w" if is_new else "a") as history,
        tqdm(total=updates, desc="pretraining", unit="update") as progress,
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            log.write(line)
            found = _JSON_LINE.search(line)
            if found is None:
                continue
            values = json.loads(found[2])
            if found[1] == "train_inner":
                progress.update(int(values["num_updates"]) - progress.n)
                progress.set_postfix(mse=values["mse"], accuracy=values["accuracy"])
            history.write(json.dumps({"kind": found[1], **values}) + "\n")
    if process.returncode:
        raise SystemExit(f"mae-ast: error: training failed, see {log_file}")
    return [json.loads(line) for line in history_file.read_text().splitlines()]


def _draw(model: PretrainedMaeAst, valid: Manifest, path: Path) -> None:
    rows: list[int] = []
    for word in SHOWN_WORDS:
        of_word = [r for r in range(len(valid)) if valid.row_path(r).startswith(f"{word}_")]
        rows.append(of_word[len(rows) * len(of_word) // len(SHOWN_WORDS)])
    clips = [Clip.of(r, read_audio(valid.audio_path(r)), seed=1, epoch=0) for r in rows]
    batch = Collater(model.config, model.mask_type, random_crop=False)(clips)
    rebuilt = reconstruct(model, batch.source, batch.mask)
    figure = pictures.reconstruction_figure(rebuilt, [f"“{word}”" for word in SHOWN_WORDS])
    figure.savefig(path, dpi=120)


def _table(scores: Scores, updates: int, minutes: float) -> str:
    chance = 1 / scores.num_candidates
    return "\n".join(
        [
            f"After {updates} updates ({minutes:.1f} min), on voices never heard:",
            "",
            "| hidden patches | this model | simple guess |",
            "| --- | --- | --- |",
            f"| mean squared error | {scores.mse:.4f} | {scores.baseline_mse:.4f} (each mel bin's "
            "mean + the clip's offset) |",
            f"| picked among {scores.num_candidates:.0f} (InfoNCE accuracy) | "
            f"{scores.accuracy:.1%} | {chance:.1%} (chance) |",
            "",
        ]
    )
