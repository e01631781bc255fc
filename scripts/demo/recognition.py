"""Word classification on held-out voices, by a probe of frozen features and by fine-tuning.

Both compare the pretrained model with the same network and random weights; the probe also has mean
log-mel as a baseline.
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
from mae_ast.evaluate import probe, report
from mae_ast.evaluate.probe_data import read_labelled
from mae_ast.finetune.checkpoint import load_finetuned
from mae_ast.hub.load import Pretrained
from scripts.demo.cache import Results, write_json
from scripts.demo.training import train

SPLIT = "test"  # its voices were used neither for pretraining nor for choosing settings
REPORT = "report"  # subfolder of a fine-tuning run
VOICE = re.compile(r"_(\w+?)_")  # in a clip's name
# Initial weights of fine-tuning. Random weights learn best with one learning rate for all layers.
INITIAL_WEIGHTS = {
    "pretrained": ["model.checkpoint={}"],
    "random weights": ["model.architecture_of={}", "model.layer_decay=1.0"],
}


def probe_words(model: Pretrained, corpus: Path) -> Results:
    """Evaluate frozen features with a linear probe and k-NN.

    Returns:
        By "pretrained", "random weights" and "mean log-mel", the accuracies "linear" and "knn" and
        the best "layer" (0 for mean log-mel).
    """
    scores = probe.probe(
        model,
        _labelled(corpus, "train"),
        _labelled(corpus, SPLIT),
        progress=bar("probe, features", "batch"),
    )
    fields = ("linear", "knn", "layer")  # the first ones of ProbeScore
    return {
        name: dict(zip(fields, dataclasses.astuple(score), strict=False))
        for name, score in scores.items()
    }


def finetune_words(
    checkpoint: Path, corpus: Path, folder: Path, updates: int, inputs: Mapping[str, Any]
) -> Results:
    """Fine-tune from the pretrained and from random weights, and evaluate both.

    Args:
        checkpoint: the pretrained model.
        corpus: folder of manifests and labels.
        folder: parent of the two run folders; a report is written into each.
        updates: updates of each run.
        inputs: everything that the results depend on; runs with other inputs are deleted.

    Returns:
        The summary of the evaluation by "pretrained" and "random weights", and "updates".
    """
    note = folder / "inputs.json"
    if folder.exists() and not (note.is_file() and json.loads(note.read_text()) == inputs):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(note, inputs)
    results: Results = {}
    for name, settings in INITIAL_WEIGHTS.items():
        run = folder / name.replace(" ", "_")
        train(corpus, run, updates, [text.format(checkpoint) for text in settings], "finetune")
        found = report.evaluate(load_finetuned(run), corpus, SPLIT, bar("scoring", "clip"))
        report.write_report(found, run / REPORT, f"fine-tuned, {name}")
        results[name] = dataclasses.asdict(found.summary)
    results["updates"] = updates
    return results


def confusion_plot(folder: Path) -> Path:
    """Return the path of the confusion matrix of the pretrained, fine-tuned model."""
    return folder / "pretrained" / REPORT / "confusion.png"


def _labelled(corpus: Path, split: str) -> probe.ProbeData:
    """Read clips, labelled with their words and grouped by voice."""
    return read_labelled(corpus / f"{split}.tsv", VOICE)
