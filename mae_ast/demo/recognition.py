"""What pretraining is worth for telling words apart, on voices that nothing was trained on.

Two ways to find out: a linear probe on frozen features, and a short fine-tuning. Each is done with
the pretrained model and, to compare, with the same network and random weights; the probe with mean
log-mel too.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mae_ast.console import bar
from mae_ast.demo.kept import Figures, write_json
from mae_ast.demo.training import train
from mae_ast.evaluate import probe, report
from mae_ast.evaluate.probe_data import read_labelled
from mae_ast.finetune.checkpoint import load_finetuned
from mae_ast.hub.load import Pretrained

SPLIT = "test"  # whose voices neither pretraining nor the choice of settings has heard
REPORT = "report"  # folder in a fine-tuning's, of what evaluation writes
VOICE = re.compile(r"_(\w+?)_")  # in a clip's name
# Where fine-tuning starts. New weights learn best at one rate for all layers.
STARTS = {
    "pretrained": ["model.checkpoint={}"],
    "random weights": ["model.architecture_of={}", "model.layer_decay=1.0"],
}


def probe_words(model: Pretrained, corpus: Path) -> Figures:
    """Evaluate features with a linear probe and k-NN: a ``ProbeScore`` as a dict by kind."""
    scores = probe.probe(
        model,
        _labelled(corpus, "train"),
        _labelled(corpus, SPLIT),
        progress=bar("probe, features", "batch"),
    )
    return {name: dataclasses.asdict(found) for name, found in scores.items()}


def finetune_words(
    checkpoint: Path, corpus: Path, folder: Path, updates: int, made_of: Mapping[str, Any]
) -> Figures:
    """Fine-tune from each start with the same number of steps; what evaluation says of each.

    Args:
        checkpoint: the pretrained model.
        corpus: folder of manifests and labels.
        folder: for a training's folder a start, with its report.
        updates: steps of each.
        made_of: what the figures depend on; trainings with others are thrown away.
    """
    note = folder / "made_of.json"
    if folder.exists() and not (note.is_file() and json.loads(note.read_text()) == made_of):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(note, made_of)
    figures: Figures = {}
    for name, settings in STARTS.items():
        run = folder / name.replace(" ", "_")
        train(corpus, run, updates, [text.format(checkpoint) for text in settings], "finetune")
        found = report.evaluate(load_finetuned(run), corpus, SPLIT, bar("scoring", "clip"))
        report.write_report(found, run / REPORT, f"fine-tuned, {name}")
        figures[name] = dataclasses.asdict(found.summary)
    figures["updates"] = updates
    return figures


def confusion_of(folder: Path) -> Path:
    """The confusion matrix of the fine-tuned pretrained model, a picture."""
    return folder / "pretrained" / REPORT / "confusion.png"


def _labelled(corpus: Path, split: str) -> probe.ProbeData:
    """Clips with their words and, as groups, their voices."""
    return read_labelled(corpus / f"{split}.tsv", VOICE)
