"""The demo from nothing to tables and pictures: corpus, pretraining, probe, fine-tuning."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import typer

import mae_ast
from mae_ast.console import bar
from mae_ast.core.checkpoints.reader import RUN_FILE
from mae_ast.core.frontend.collate import Clip, Collater
from mae_ast.core.inference.reconstruct import reconstruct
from mae_ast.core.io.audio import read_audio
from mae_ast.core.io.manifest import Manifest
from mae_ast.demo.corpus import DESCRIPTION_FILE, description, make_corpus
from mae_ast.demo.evaluate import evaluate
from mae_ast.demo.kept import Figures, kept, write_json
from mae_ast.demo.recognition import confusion_of, finetune_words, probe_words
from mae_ast.demo.report import report
from mae_ast.demo.training import num_updates, train
from mae_ast.evaluate import plots
from mae_ast.hub.load import PretrainedMaeAst

SHOWN_WORDS = ("marvin", "seven", "sheila", "yes")
FINETUNING_UPDATES = 300  # as many as there is time for


def run_demo(
    folder: Path, updates: int, takes: int, finetuning_updates: int = FINETUNING_UPDATES
) -> Figures:
    """Run all of it; what is already there is not made again.

    Args:
        folder: for corpus, runs and results.
        updates: steps of pretraining.
        takes: times that each voice says each word.
        finetuning_updates: steps of fine-tuning.

    Returns:
        The figures of "pretraining", "probe" and "finetuning", as in ``results.json``.
    """
    corpus, run, finetuned = folder / "corpus", folder / "run", folder / "finetuned"
    _check_corpus(run, takes)
    corpus.mkdir(parents=True, exist_ok=True)
    make_corpus(corpus, takes, os.cpu_count() or 1, bar("speaking", "voice"))
    spoken = json.loads(description(takes))

    checkpoint = run / RUN_FILE
    drawn = [folder / "reconstruction.png", folder / "loss.png"]
    figures = {
        "pretraining": kept(
            folder / "pretraining.json",
            {"corpus": spoken, "updates": updates},
            lambda: _pretrain(corpus, run, updates, drawn),
            [checkpoint, *drawn],
        )
    }
    made_of: dict[str, Any] = {"corpus": spoken, "checkpoint": _sha256(checkpoint)}
    figures["probe"] = kept(
        folder / "probe.json", made_of, lambda: probe_words(mae_ast.load(checkpoint), corpus)
    )
    made_of["updates"] = finetuning_updates
    figures["finetuning"] = kept(
        folder / "finetuning.json",
        made_of,
        lambda: finetune_words(checkpoint, corpus, finetuned, finetuning_updates, made_of),
        [confusion_of(finetuned)],
    )
    write_json(folder / "results.json", figures)
    tables = report(figures)
    (folder / "results.md").write_text(tables, encoding="utf-8")
    typer.echo(tables)
    typer.echo(f"pictures: {', '.join(map(str, [*drawn, confusion_of(finetuned)]))}")
    return figures


def _pretrain(corpus: Path, run: Path, updates: int, drawn: list[Path]) -> Figures:
    """Pretrain, evaluate on unheard voices, draw."""
    run.mkdir(exist_ok=True)
    shutil.copy(corpus / DESCRIPTION_FILE, run)
    checkpoint = run / RUN_FILE
    in_one_go = not checkpoint.exists()
    history = train(corpus, run, updates)
    model = mae_ast.load(checkpoint)
    assert isinstance(model, PretrainedMaeAst)  # as the preset says
    train_set, valid_set = Manifest.load(corpus / "train.tsv"), Manifest.load(corpus / "valid.tsv")
    scores = evaluate(model, train_set, valid_set)
    _draw(model, valid_set, drawn[0])
    plots.loss_figure(history).savefig(drawn[1], dpi=120)
    return {
        "updates": num_updates(checkpoint),
        "in_one_go": in_one_go,
        **dataclasses.asdict(scores),
    }


def _draw(model: PretrainedMaeAst, valid: Manifest, path: Path) -> None:
    rows: list[int] = []
    for word in SHOWN_WORDS:
        of_word = [r for r in range(len(valid)) if valid.row_path(r).startswith(f"{word}_")]
        rows.append(of_word[len(rows) * len(of_word) // len(SHOWN_WORDS)])
    clips = [Clip.of(r, read_audio(valid.audio_path(r)), seed=1, epoch=0) for r in rows]
    batch = Collater(model.config, model.mask_type, random_crop=False)(clips)
    rebuilt = reconstruct(model, batch.source, batch.mask)
    figure = plots.reconstruction_figure(rebuilt, [f"“{word}”" for word in SHOWN_WORDS])
    figure.savefig(path, dpi=120)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _check_corpus(run: Path, takes: int) -> None:
    """A run that goes on must find the corpus that it was begun with."""
    of_run = run / DESCRIPTION_FILE
    if of_run.is_file() and of_run.read_text() != description(takes):
        raise ValueError(
            f"{run}: was trained on another corpus than that of --takes {takes}; "
            "choose another --out, or remove it"
        )
