"""Run the demo: corpus, pretraining, probe and fine-tuning, then tables, plots and a page."""

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
from mae_ast.core.io.manifest import Manifest
from mae_ast.core.io.segment import read_segment
from mae_ast.evaluate.plots import reconstruction_figure
from mae_ast.evaluate.training_curves import curves_figure
from mae_ast.hub.load import PretrainedMaeAst
from mae_ast.report.collect import read_runs
from mae_ast.report.contents import Choices, contents
from mae_ast.report.page import write_page
from mae_ast.report.reconstructions import Excerpts
from mae_ast.trainer.metrics_log import read_metrics
from scripts.demo.cache import Results, cached, write_json
from scripts.demo.corpus import DESCRIPTION_FILE, description, make_corpus
from scripts.demo.evaluate import evaluate
from scripts.demo.recognition import INITIAL_WEIGHTS, confusion_plot, finetune_words, probe_words
from scripts.demo.report import report
from scripts.demo.training import num_updates, train

SHOWN_WORDS = ("marvin", "seven", "sheila", "yes")
FINETUNING_UPDATES = 300  # a compromise between accuracy and time
PAGE = Choices("mae-ast demo", Excerpts(4, 5.0), None, True, "cpu")


def run_demo(
    folder: Path, updates: int, takes: int, finetuning_updates: int = FINETUNING_UPDATES
) -> Results:
    """Run all phases that are not complete yet.

    Args:
        folder: folder of the corpus, the runs and the results.
        updates: pretraining updates.
        takes: number of times that each voice says each word.
        finetuning_updates: fine-tuning updates.

    Returns:
        The results of "pretraining", "probe" and "finetuning", as in ``results.json``.

    Raises:
        ValueError: the folder holds a run that was trained on another corpus.
        SystemExit: a training failed or was stopped.
    """
    run, finetuned = folder / "run", folder / "finetuned"
    corpus = write_corpus(folder, takes)
    identity = json.loads(description(takes))

    checkpoint = run / RUN_FILE
    drawn = [folder / "reconstruction.png", folder / "loss.png"]
    results = {
        "pretraining": cached(
            folder / "pretraining.json",
            {"corpus": identity, "updates": updates},
            lambda: _pretrain(corpus, run, updates, drawn),
            [checkpoint, *drawn],
        )
    }
    inputs: dict[str, Any] = {"corpus": identity, "checkpoint": _sha256(checkpoint)}
    results["probe"] = cached(
        folder / "probe.json", inputs, lambda: probe_words(mae_ast.load(checkpoint), corpus)
    )
    inputs["updates"] = finetuning_updates
    results["finetuning"] = cached(
        folder / "finetuning.json",
        inputs,
        lambda: finetune_words(checkpoint, corpus, finetuned, finetuning_updates, inputs),
        [confusion_plot(finetuned)],
    )
    write_json(folder / "results.json", results)
    tables = report(results)
    (folder / "results.md").write_text(tables, encoding="utf-8")
    typer.echo(tables)
    typer.echo(f"plots: {', '.join(map(str, [*drawn, confusion_plot(finetuned)]))}")
    page = folder / "report.html"
    runs = [run, *(finetuned / name.replace(" ", "_") for name in INITIAL_WEIGHTS)]
    checkpoints = {each.name: _sha256(each / RUN_FILE) for each in runs}
    cached(
        folder / "report.json",
        {"checkpoints": checkpoints, "version": mae_ast.__version__},
        lambda: {"bytes": _write_page(runs, page)},
        [page],
    )
    typer.echo(f"curves, sounds and embeddings, for a browser: {page}")
    return results


def write_corpus(folder: Path, takes: int) -> Path:
    """Write the corpus of the demo, unless it exists; return its folder.

    Raises:
        ValueError: the folder holds a run that was trained on another corpus.
    """
    corpus = folder / "corpus"
    _check_corpus(folder / "run", takes)
    corpus.mkdir(parents=True, exist_ok=True)
    make_corpus(corpus, takes, os.cpu_count() or 1, bar("speaking", "voice"))
    return corpus


def _pretrain(corpus: Path, run: Path, updates: int, drawn: list[Path]) -> Results:
    """Pretrain, evaluate on held-out voices, and plot."""
    run.mkdir(exist_ok=True)
    shutil.copy(corpus / DESCRIPTION_FILE, run)
    checkpoint = run / RUN_FILE
    in_one_go = not checkpoint.exists()
    train(corpus, run, updates)
    model = mae_ast.load(checkpoint)
    assert isinstance(model, PretrainedMaeAst)  # as the preset says
    train_set, valid_set = Manifest.load(corpus / "train.tsv"), Manifest.load(corpus / "valid.tsv")
    scores = evaluate(model, train_set, valid_set)
    _draw(model, valid_set, drawn[0])
    curves_figure(read_metrics(run)).savefig(drawn[1], dpi=120)
    return {
        "updates": num_updates(checkpoint),
        "in_one_go": in_one_go,
        **dataclasses.asdict(scores),
    }


def _draw(model: PretrainedMaeAst, valid: Manifest, path: Path) -> None:
    rows: list[int] = []
    for word in SHOWN_WORDS:
        matches = [r for r in range(len(valid)) if valid.row_path(r).startswith(f"{word}_")]
        rows.append(matches[len(rows) * len(matches) // len(SHOWN_WORDS)])
    clips = [Clip.of(r, read_segment(valid.segment(r)), seed=1, epoch=0) for r in rows]
    batch = Collater(model.config, model.mask_type, random_crop=False)(clips)
    reconstruction = reconstruct(model, batch.source, batch.mask)
    figure = reconstruction_figure(reconstruction, [f"“{word}”" for word in SHOWN_WORDS])
    figure.savefig(path, dpi=120)


def _write_page(runs: list[Path], page: Path) -> int:
    return write_page(contents(read_runs(runs), PAGE, bar("making the page", "part")), page)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _check_corpus(run: Path, takes: int) -> None:
    """Refuse to resume a run on a corpus other than the one it was trained on."""
    recorded = run / DESCRIPTION_FILE
    if recorded.is_file() and recorded.read_text() != description(takes):
        raise ValueError(
            f"{run}: was trained on another corpus, not that of --takes {takes}; choose another "
            "--out, or delete this folder"
        )
